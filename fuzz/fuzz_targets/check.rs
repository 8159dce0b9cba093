#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hotplugger_fuzz::check::run(data));
