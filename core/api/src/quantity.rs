//! Resource quantities (`500m`, `1.5Gi`, `2e3`): parsed, compared, added, written canonically.
//!
//! Upstream's texts are kept: a quantity prints as it was read unless upstream would rewrite it
//! (`1000m` → `1`, `0.5` → `500m`, `1024Mi` → `1Gi`). Held are 38 digits and a power of ten down
//! to 10⁻⁹, rounded away from zero below that; longer numbers are refused.
use alloc::borrow::ToOwned;
use alloc::string::String;
use core::cmp::Ordering;
use core::fmt;
use core::ops::{Add, Sub};
use core::str::FromStr;

/// An exact decimal number with the suffix family it is written in.
#[derive(Clone, Debug, Default)]
pub struct Quantity {
    mantissa: i128,
    /// Power of ten, at least -9.
    exponent: i32,
    format: Format,
    /// The text it was read from, where that is how it is written back.
    text: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Format {
    #[default]
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// Why a text is no quantity; Display is upstream's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantityError {
    /// Not a number with a suffix.
    Format,
    /// The number cannot be held.
    Numeric,
    /// No such suffix.
    Suffix,
}

impl fmt::Display for QuantityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QuantityError::Format => {
                "quantities must match the regular expression \
                 '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            }
            QuantityError::Numeric => "unable to parse numeric part of quantity",
            QuantityError::Suffix => "unable to parse quantity's suffix",
        })
    }
}

impl core::error::Error for QuantityError {}

const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const BINARY: [(&str, u32); 6] =
    [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const NANO: i32 = -9;

enum Suffix {
    Ten(i32, Format),
    Two(u32),
}

fn suffix(text: &str) -> Result<Suffix, QuantityError> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == text) {
        return Ok(Suffix::Ten(*exponent, Format::DecimalSi));
    }
    if let Some((_, shift)) = BINARY.iter().find(|(name, _)| *name == text) {
        return Ok(Suffix::Two(*shift));
    }
    let exponent = text.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
    let exponent = exponent.parse().map_err(|_| QuantityError::Suffix)?;
    Ok(Suffix::Ten(exponent, Format::DecimalExponent))
}

/// The parts of a text: sign, digits before and after the point, suffix.
struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (whole, rest) = digits(unsigned.trim_start_matches('0'));
    let (fraction, suffix) = rest.strip_prefix('.').map_or(("", rest), digits);
    let tail = suffix.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    let tail = tail.strip_prefix(['+', '-']).unwrap_or(tail);
    if text.is_empty() || !tail.bytes().all(|b| b.is_ascii_digit()) {
        return Err(QuantityError::Format);
    }
    Ok(Parts { negative: text.starts_with('-'), whole, fraction, suffix })
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Quantity, QuantityError> {
        let parts = split(text)?;
        let suffix = suffix(parts.suffix)?;
        let mut mantissa: i128 = 0;
        for digit in parts.whole.bytes().chain(parts.fraction.bytes()) {
            let shifted = mantissa.checked_mul(10).ok_or(QuantityError::Numeric)?;
            mantissa =
                shifted.checked_add(i128::from(digit - b'0')).ok_or(QuantityError::Numeric)?;
        }
        let kept = keeps_text(&parts, &suffix, mantissa);
        let places = i32::try_from(parts.fraction.len()).map_err(|_| QuantityError::Numeric)?;
        let mut quantity = match suffix {
            Suffix::Ten(exponent, format) => {
                Quantity { mantissa, exponent: exponent.saturating_sub(places), format, text: None }
            }
            Suffix::Two(shift) => {
                let mantissa = mantissa.checked_mul(1 << shift).ok_or(QuantityError::Numeric)?;
                Quantity { mantissa, exponent: -places, format: Format::BinarySi, text: None }
            }
        };
        quantity.round_up(NANO);
        if quantity.format == Format::BinarySi {
            quantity.tame_binary();
        }
        if parts.negative {
            quantity.mantissa = -quantity.mantissa;
        }
        quantity.text = kept.then(|| text.to_owned());
        Ok(quantity)
    }
}

/// Whether upstream remembers the text it read: only if it can tell cheaply that the text is (or
/// may pass for) canonical.
fn keeps_text(parts: &Parts<'_>, suffix: &Suffix, mantissa: i128) -> bool {
    let length = parts.whole.len().max(1) + parts.fraction.len();
    let places = parts.fraction.len() as i32;
    match suffix {
        Suffix::Ten(exponent, _) => {
            let scale = exponent.saturating_sub(places);
            length <= 18
                && scale >= NANO
                && scale % 3 == 0
                && !parts.whole.is_empty()
                && mantissa % 1000 != 0
        }
        Suffix::Two(shift) => {
            let room = 14 - parts.whole.len() as i32 - (*shift as i32 * 3 / 10);
            places == 0 && room >= 0 && mantissa & 7 != 0
        }
    }
}

impl Quantity {
    /// A whole number of units.
    pub fn from_units(units: i64) -> Quantity {
        Quantity { mantissa: units.into(), ..Quantity::default() }
    }

    /// A number of thousandths, as CPU is counted.
    pub fn from_milli(milli: i64) -> Quantity {
        Quantity { mantissa: milli.into(), exponent: -3, ..Quantity::default() }
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    /// -1, 0 or 1.
    pub fn signum(&self) -> i32 {
        self.mantissa.signum() as i32
    }

    /// Whole units, rounded away from zero, clamped to 64 bits.
    pub fn value(&self) -> i64 {
        clamp(self.scaled(0))
    }

    /// Thousandths, rounded away from zero, clamped to 64 bits.
    pub fn milli_value(&self) -> i64 {
        clamp(self.scaled(-3))
    }

    /// Drops what is below 10^`exponent`, away from zero. True if nothing was lost.
    pub fn round_up(&mut self, exponent: i32) -> bool {
        if self.exponent >= exponent {
            return true;
        }
        let exact = scale_down(self.mantissa, exponent.abs_diff(self.exponent));
        (self.mantissa, self.exponent, self.text) = (exact.0, exponent, None);
        exact.1
    }

    /// In units of 10^`exponent`, rounded away from zero, saturating.
    fn scaled(&self, exponent: i32) -> i128 {
        match self.exponent.checked_sub(exponent) {
            Some(up) if up >= 0 => scale_up(self.mantissa, up.unsigned_abs()),
            _ => scale_down(self.mantissa, exponent.abs_diff(self.exponent)).0,
        }
    }

    /// Binary quantities end at 2⁶³-1, and fractions of one are written decimally.
    fn tame_binary(&mut self) {
        let limit = i128::from(i64::MAX);
        if self.scaled(0) > limit {
            (self.mantissa, self.exponent) = (limit, 0);
        }
        if self.mantissa != 0 && self.exponent < 0 && self.scaled(NANO) < 1_000_000_000 {
            self.format = Format::DecimalSi;
        }
    }

    fn write_decimal(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut mantissa, mut exponent) = (self.mantissa, self.exponent);
        while mantissa % 10 == 0 {
            (mantissa, exponent) = (mantissa / 10, exponent.saturating_add(1));
        }
        let over = exponent.rem_euclid(3);
        let mantissa = scale_up(mantissa, over.unsigned_abs());
        let exponent = exponent - over;
        let si =
            DECIMAL.iter().find(|(_, e)| *e == exponent && self.format != Format::DecimalExponent);
        match si {
            Some((suffix, _)) => write!(f, "{mantissa}{suffix}"),
            None if exponent == 0 => write!(f, "{mantissa}"),
            None => write!(f, "{mantissa}e{exponent}"),
        }
    }

    fn write_binary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut times) = (self.scaled(0), 0);
        while value % 1024 == 0 && times < BINARY.len() {
            (value, times) = (value / 1024, times + 1);
        }
        let suffix = times.checked_sub(1).map_or("", |at| BINARY[at].0);
        write!(f, "{value}{suffix}")
    }
}

/// Canonical text.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            return f.write_str(text);
        }
        if self.is_zero() {
            return f.write_str("0");
        }
        let is_whole =
            self.exponent >= 0 || scale_down(self.mantissa, self.exponent.unsigned_abs()).1;
        let is_small = self.scaled(0).abs() < 1024;
        match self.format {
            Format::BinarySi if is_whole && !is_small => self.write_binary(f),
            _ => self.write_decimal(f),
        }
    }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn scale_up(value: i128, places: u32) -> i128 {
    if value == 0 {
        return 0;
    }
    10_i128.checked_pow(places).map_or(i128::MAX * value.signum(), |p| value.saturating_mul(p))
}

/// Divided by a power of ten, away from zero; and whether that was exact.
fn scale_down(value: i128, places: u32) -> (i128, bool) {
    let Some(power) = 10_i128.checked_pow(places) else {
        return (value.signum(), value == 0);
    };
    let (quotient, remainder) = (value / power, value % power);
    (quotient + remainder.signum(), remainder == 0)
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// By value; the way of writing does not matter.
impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        let exponent = self.exponent.min(other.exponent);
        self.scaled(exponent).cmp(&other.scaled(exponent))
    }
}

impl Quantity {
    fn combine(&self, other: &Quantity, f: fn(i128, i128) -> i128) -> Quantity {
        let exponent = self.exponent.min(other.exponent);
        let mantissa = f(self.scaled(exponent), other.scaled(exponent));
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { mantissa, exponent, format, text: None }
    }
}

impl Add for &Quantity {
    type Output = Quantity;
    fn add(self, other: &Quantity) -> Quantity {
        self.combine(other, i128::saturating_add)
    }
}

impl Sub for &Quantity {
    type Output = Quantity;
    fn sub(self, other: &Quantity) -> Quantity {
        self.combine(other, i128::saturating_sub)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn written_as_upstream_writes_it() {
        let cases = "0 0|0m 0|00 0|-0 0|1000m 1|0.5 500m|1.5 1500m|1.234 1.234\
             |100Mi 100Mi|1024Mi 1Gi\
            |1.5Gi 1536Mi|64Mi 64Mi|1Ki 1Ki|1e3 1e3|12e4 120e3|1E3 1E3|0.1Mi 104857600m|1000 1k\
            |2000Ki 2000Ki|1023 1023|-1 -1|+5 +5|0005 0005|5. 5.|.5 500m|100u 100u|1500u 1500u\
            |0.0000000001 1n|1000000n 1m|3T 3T|1Pi 1Pi|1024Pi 1Ei|1536Pi 1536Pi\
             |16Ei 9223372036854775807\
            |0.5Ki 512|0.0001Ki 102400u|10000000000000000000 10E|-1.5Gi -1536Mi|-1000m -1";
        for case in cases.split('|') {
            let (text, canonical) = case.split_once(' ').unwrap();
            assert_eq!(text.parse::<Quantity>().unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn refused_with_upstreams_words() {
        for text in ["", "abc", "1 Mi", "1.2.3", "1Mi5x", "{}"] {
            assert_eq!(text.parse::<Quantity>(), Err(QuantityError::Format), "{text}");
        }
        for text in ["1Kii", "1mm", "1e", "1K", "e", "1i", "--1"] {
            assert_eq!(text.parse::<Quantity>(), Err(QuantityError::Suffix), "{text}");
        }
    }

    #[test]
    fn compared_and_added_by_value() {
        let q = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!(q("1"), q("1000m"));
        assert!(q("1Gi") > q("1G"));
        assert!(q("-1") < q("0"));
        assert_eq!((&q("500m") + &q("1")).to_string(), "1500m");
        assert_eq!((&q("1Gi") - &q("1Mi")).to_string(), "1023Mi");
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("-1500m").value(), -2);
        assert_eq!(q("0.0001").milli_value(), 1);
        assert_eq!(q("1e30").value(), i64::MAX);
        assert_eq!(Quantity::from_milli(1500).to_string(), "1500m");
        assert_eq!(Quantity::from_units(2000).to_string(), "2k");
    }
}
