//! RFC 3339 times as Go's `time` package reads and writes them, with its error texts.
use alloc::format;
use alloc::string::{String, ToString};

use serde_json::Value;

/// How much of a second is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// metav1.Time
    Seconds,
    /// metav1.MicroTime: six digits, which the input must have too.
    Micros,
}

impl Precision {
    fn layout(self) -> &'static str {
        match self {
            Precision::Seconds => "2006-01-02T15:04:05Z07:00",
            Precision::Micros => "2006-01-02T15:04:05.000000Z07:00",
        }
    }
}

/// The same moment in UTC, or `None` for Go's zero time (year 1).
pub(crate) fn canonical_time(text: &str, precision: Precision) -> Result<Option<String>, String> {
    let (seconds, micros) = parse(text, precision).map_err(|fault| fault.text(text, precision))?;
    Ok(format_time(seconds, micros, precision))
}

/// Seconds since 1970 and microseconds of what `canonical_time` would take.
pub(crate) fn moment(text: &str, precision: Precision) -> Option<(i64, u32)> {
    parse(text, precision).ok()
}

/// The text of a moment, if its year has four digits.
pub(crate) fn text_of(seconds: i64, micros: u32, precision: Precision) -> Option<Value> {
    let years = days_since_epoch(0, 1, 1) * 86_400..days_since_epoch(10_000, 1, 1) * 86_400;
    let text = years.contains(&seconds).then(|| format_time(seconds, micros, precision))?;
    Some(text.map_or(Value::Null, Value::from))
}

fn format_time(seconds: i64, micros: u32, precision: Precision) -> Option<String> {
    let days = seconds.div_euclid(86_400);
    let clock = seconds.rem_euclid(86_400);
    let (year, month, day) = civil(days);
    if (year, month, day, clock, micros) == (1, 1, 1, 0, 0) {
        return None;
    }
    let (h, m, s) = (clock / 3600, clock / 60 % 60, clock % 60);
    let head = format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}");
    Some(match precision {
        Precision::Seconds => head + "Z",
        Precision::Micros => format!("{head}.{micros:06}Z"),
    })
}

enum Fault {
    /// (rest of the text, element of the layout)
    Mismatch(String, &'static str),
    Range(&'static str),
    Extra(String),
}

impl Fault {
    fn text(self, text: &str, precision: Precision) -> String {
        let layout = precision.layout();
        match self {
            Fault::Mismatch(rest, element) => {
                format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}")
            }
            Fault::Range(what) => format!("parsing time {text:?}: {what} out of range"),
            Fault::Extra(rest) => format!("parsing time {text:?}: extra text: {rest:?}"),
        }
    }
}

/// Seconds since 1970 and microseconds.
fn parse(text: &str, precision: Precision) -> Result<(i64, u32), Fault> {
    let mut rest = text;
    let year = number(&mut rest, 4, "2006")?;
    literal(&mut rest, "-")?;
    let month = number(&mut rest, 2, "01")?;
    check((1..=12).contains(&month), "month")?;
    literal(&mut rest, "-")?;
    let day = number(&mut rest, 2, "02")?;
    literal(&mut rest, "T")?;
    let hour = number(&mut rest, 2, "15")?;
    check(hour < 24, "hour")?;
    literal(&mut rest, ":")?;
    let minute = number(&mut rest, 2, "04")?;
    check(minute < 60, "minute")?;
    literal(&mut rest, ":")?;
    let second = number(&mut rest, 2, "05")?;
    check(second < 60, "second")?;
    let micros = fraction(&mut rest, precision)?;
    let offset = offset(&mut rest)?;
    if !rest.is_empty() {
        return Err(Fault::Extra(rest.to_string()));
    }
    check((1..=days_in(year, month)).contains(&day), "day")?;
    let clock = hour * 3600 + minute * 60 + second;
    Ok((days_since_epoch(year, month, day) * 86_400 + clock - offset, micros))
}

fn check(holds: bool, what: &'static str) -> Result<(), Fault> {
    if holds { Ok(()) } else { Err(Fault::Range(what)) }
}

fn number(rest: &mut &str, width: usize, element: &'static str) -> Result<i64, Fault> {
    let digits = rest.get(..width).filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
    let Some(value) = digits.and_then(|d| d.parse().ok()) else {
        return Err(Fault::Mismatch(rest.to_string(), element));
    };
    *rest = &rest[width..];
    Ok(value)
}

fn literal(rest: &mut &str, element: &'static str) -> Result<(), Fault> {
    let stripped = rest.strip_prefix(element);
    *rest = stripped.ok_or_else(|| Fault::Mismatch(rest.to_string(), element))?;
    Ok(())
}

fn fraction(rest: &mut &str, precision: Precision) -> Result<u32, Fault> {
    let digits = match rest.strip_prefix(['.', ',']) {
        Some(tail) => &tail[..tail.bytes().take_while(u8::is_ascii_digit).count()],
        None => "",
    };
    if precision == Precision::Micros && digits.len() != 6 {
        return Err(Fault::Mismatch(rest.to_string(), ".000000"));
    }
    if digits.is_empty() {
        return Ok(0);
    }
    *rest = &rest[digits.len() + 1..];
    let six = format!("{digits:0<6}");
    Ok(six[..6].parse().unwrap_or(0))
}

/// Seconds east of UTC.
fn offset(rest: &mut &str) -> Result<i64, Fault> {
    const ELEMENT: &str = "Z07:00";
    if let Some(tail) = rest.strip_prefix('Z') {
        *rest = tail;
        return Ok(0);
    }
    let whole = rest.to_string();
    let wrong = |_| Fault::Mismatch(whole.clone(), ELEMENT);
    let sign = match rest.as_bytes().first() {
        Some(b'+') => 1,
        Some(b'-') => -1,
        _ => return Err(Fault::Mismatch(whole, ELEMENT)),
    };
    *rest = &rest[1..];
    let hours = number(rest, 2, ELEMENT).map_err(wrong)?;
    literal(rest, ":").map_err(wrong)?;
    let minutes = number(rest, 2, ELEMENT).map_err(wrong)?;
    check(hours <= 24, "time zone offset hour")?;
    check(minutes < 60, "time zone offset minute")?;
    Ok(sign * (hours * 3600 + minutes * 60))
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar; years begin in March so that the leap
/// day comes last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse: (year, month, day).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}
