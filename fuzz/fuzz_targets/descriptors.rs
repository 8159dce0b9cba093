#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hotplugger_fuzz::descriptors::run(data));
