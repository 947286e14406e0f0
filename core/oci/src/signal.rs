//! Signals by name, with the numbers that x86-64 and aarch64 share.

/// SIGTERM.
pub const TERM: i32 = 15;

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, …
#[must_use]
pub fn number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = || match short.strip_prefix("RT")? {
        "MIN" => Some(RTMIN),
        "MAX" => Some(RTMAX),
        rest => {
            let offset = |text: &str| text.parse::<i32>().ok().filter(|n| (0..=30).contains(n));
            let up = rest.strip_prefix("MIN+").and_then(offset).map(|n| RTMIN + n);
            up.or_else(|| rest.strip_prefix("MAX-").and_then(offset).map(|n| RTMAX - n))
        }
    };
    let at = NAMES.iter().position(|known| *known == short);
    at.and_then(|at| i32::try_from(at + 1).ok()).or_else(real_time)
}
