//! Looks for time that grows faster than the input: patterns, each repeated to ever larger inputs.
//!
//! Prints for each target the pattern with which the largest input took longest, and by which power
//! of the size its time grew: about 1 is linear, 2 quadratic.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hotplugger_fuzz::{TARGETS, Target};

/// In bytes. The largest is the most that is read of any input.
const SIZES: [usize; 4] = [16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// What takes longer is not tried any larger.
const ENOUGH: Duration = Duration::from_secs(2);

/// Beside the corpus: what parsers count, nest, look for or compare.
const PATTERNS: [&str; 26] = [
    " ",
    "\n",
    "\0",
    "{",
    "[",
    "\"",
    "\\",
    "{\"\":",
    "[0,",
    "- ",
    "? ",
    "&a ",
    "*a ",
    "a: ",
    "a: [",
    "#\n",
    "/",
    "/usb1",
    "/usb1:1.",
    "-usb-0:",
    "1.",
    "1-1/",
    "bus: a\n  type usb-bus\n",
    "dev: uhci, id \"\"\n masterbus = \"a\"\n",
    "  Bus 1, Addr 5, Port 1, Speed 12 Mb/s\n",
    "A=b\0",
];

fn main() {
    let only = std::env::args().nth(1);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    println!("{:12} {:>8} {:>12} {:>6}  pattern", "target", "bytes", "time", "power");
    for (name, run) in TARGETS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let files = fs::read_dir(corpus.join(name)).into_iter().flatten().flatten();
        let mut patterns: Vec<Vec<u8>> =
            files.filter_map(|file| fs::read(file.path()).ok()).collect();
        patterns.extend(PATTERNS.map(|pattern| pattern.as_bytes().to_vec()));
        patterns.retain(|pattern| !pattern.is_empty());
        let slowest = patterns
            .iter()
            .map(|pattern| (growth(run, pattern), pattern))
            .max_by(|((_, one, _), _), ((_, other, _), _)| one.cmp(other));
        let Some(((size, time, power), pattern)) = slowest else { continue };
        let pattern: String = pattern.escape_ascii().to_string().chars().take(60).collect();
        let time = format!("{:.2} ms", time.as_secs_f64() * 1e3);
        println!("{name:12} {size:>8} {time:>12} {power:6.2}  {pattern}");
    }
}

/// The largest size tried, the time it took, and the power of the last step.
fn growth(run: Target, pattern: &[u8]) -> (usize, Duration, f64) {
    let mut last = (0, Duration::ZERO, 0.0);
    for size in SIZES {
        let taken = time(run, pattern, size);
        let power = (taken.as_secs_f64() / last.1.as_secs_f64().max(1e-6)).log(4.0);
        last = (size, taken, power);
        if taken > ENOUGH {
            break;
        }
    }
    last
}

/// Of the faster of two runs.
fn time(run: Target, pattern: &[u8], size: usize) -> Duration {
    let input: Vec<u8> = pattern.iter().copied().cycle().take(size).collect();
    let one = || {
        let start = Instant::now();
        run(&input);
        start.elapsed()
    };
    one().min(one())
}
