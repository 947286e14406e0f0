//! Service account tokens: when one is to be replaced.

use alloc::string::String;

use jiff::{SignedDuration, Timestamp};

/// No token is used for longer than this, however long it would be good.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);
/// None is replaced before this, even if clocks disagree and it seems to be worth nothing.
const MIN_AGE: SignedDuration = SignedDuration::from_mins(1);
/// Nodes and Pods that began together do not ask together.
const MAX_JITTER_SECONDS: u64 = 10;

/// A token that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token itself.
    pub text: String,
    /// When, by the node's clock.
    pub granted: Timestamp,
    /// When it is worth nothing any more.
    pub expires: Timestamp,
    /// How long it was granted for.
    pub seconds: i64,
}

impl Token {
    /// When a new one is to be asked for: at 80 % of its life, at the latest after a day; `seed`
    /// brings that forward by less than ten seconds.
    pub fn renew_at(&self, seed: u64) -> Timestamp {
        let jitter = SignedDuration::from_secs((seed % MAX_JITTER_SECONDS).cast_signed());
        let life = SignedDuration::from_secs(self.seconds);
        let fifth = SignedDuration::from_secs(self.seconds * 20 / 100);
        let old = self.expires - life + MAX_AGE;
        let soonest = self.granted + MIN_AGE;
        ((self.expires - fifth).min(old) - jitter).max(soonest)
    }

    /// Whether it is of use.
    pub fn is_good(&self, now: Timestamp) -> bool {
        now <= self.expires
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renewed_after(seconds: i64, seed: u64) -> i64 {
        let issued = Timestamp::UNIX_EPOCH;
        let expires = issued + SignedDuration::from_secs(seconds);
        let token = Token { text: String::new(), granted: issued, expires, seconds };
        assert!(token.is_good(expires) && !token.is_good(expires + SignedDuration::from_secs(1)));
        token.renew_at(seed).as_second()
    }

    #[test]
    fn a_token_is_renewed_at_four_fifths_of_its_life_or_after_a_day() {
        for (seconds, seed, after) in [
            (600, 0, 480),
            (3607, 0, 2886),
            (3600, 13, 2877),
            (107_999, 0, 86_400),
            (10 * 86_400, 9, 86_391),
            (10, 0, 60),
        ] {
            assert_eq!(renewed_after(seconds, seed), after, "{seconds} {seed}");
        }
    }
}
