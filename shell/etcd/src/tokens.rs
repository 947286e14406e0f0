//! Who logged in: tokens that this process remembers ("simple"), or that speak for themselves
//! (JWT).

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use knarr_etcd_model::auth::AuthError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// What those get who log in.
#[derive(Clone, Debug)]
pub enum TokenKind {
    /// Random words, remembered here; their life begins anew with each use.
    Simple {
        /// How long one lives without being used.
        ttl: Duration,
    },
    /// Signed words, remembered nowhere.
    Jwt {
        /// Such as `RS256`.
        algorithm: Algorithm,
        /// PEM of the public key, or the secret of an HMAC.
        public: PathBuf,
        /// PEM of the private key; without one nobody can log in here.
        private: Option<PathBuf>,
        /// How long one lives.
        ttl: Duration,
    },
}

/// Why there cannot be tokens.
#[derive(Debug)]
pub struct TokenError(String);

/// Makes and knows tokens.
pub(crate) enum Tokens {
    Simple { ttl: Duration, sessions: Mutex<HashMap<[u8; 32], Session>> },
    Jwt(Box<Jwt>),
}

pub(crate) struct Session {
    user: String,
    ends: Instant,
}

pub(crate) struct Jwt {
    algorithm: Algorithm,
    public: DecodingKey,
    private: Option<EncodingKey>,
    ttl: Duration,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    username: String,
    revision: u64,
    exp: u64,
}

impl Default for TokenKind {
    fn default() -> Self {
        Self::Simple { ttl: Duration::from_secs(300) }
    }
}

impl Tokens {
    pub(crate) fn new(kind: &TokenKind) -> Result<Self, TokenError> {
        Ok(match kind {
            TokenKind::Simple { ttl } => Self::Simple { ttl: *ttl, sessions: Mutex::default() },
            TokenKind::Jwt { algorithm, public, private, ttl } => {
                let private = private.as_ref().map(|path| encoding_key(*algorithm, path));
                Self::Jwt(Box::new(Jwt {
                    algorithm: *algorithm,
                    public: decoding_key(*algorithm, public)?,
                    private: private.transpose()?,
                    ttl: *ttl,
                }))
            }
        })
    }

    /// A new token for somebody whose password was right.
    pub(crate) fn issue(&self, user: &str, revision: u64) -> Result<String, AuthError> {
        match self {
            Self::Simple { ttl, sessions } => {
                let mut random = [0; 16];
                getrandom::fill(&mut random).expect("the kernel gives randomness");
                let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
                let now = Instant::now();
                let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
                sessions.retain(|_, session| session.ends > now);
                let session = Session { user: user.to_owned(), ends: now + *ttl };
                sessions.insert(Sha256::digest(&token).into(), session);
                Ok(token)
            }
            Self::Jwt(jwt) => jwt.issue(user, revision),
        }
    }

    /// The user of a token, and the revision it was made at where it says so.
    pub(crate) fn user(&self, token: &str) -> Result<(String, Option<u64>), AuthError> {
        match self {
            Self::Simple { ttl, sessions } => {
                // Found by its hash, so that no comparison tells how much of a guess was right.
                let digest: [u8; 32] = Sha256::digest(token).into();
                let now = Instant::now();
                let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
                let session = sessions.get_mut(&digest).filter(|session| session.ends > now);
                let session = session.ok_or(AuthError::InvalidAuthToken)?;
                session.ends = now + *ttl;
                Ok((session.user.clone(), None))
            }
            Self::Jwt(jwt) => jwt.user(token),
        }
    }

    /// Forgets what a user was given. Words that speak for themselves know the revision instead.
    pub(crate) fn revoke(&self, user: &str) {
        if let Self::Simple { sessions, .. } = self {
            let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.retain(|_, session| session.user != user);
        }
    }

    /// Forgets everything.
    pub(crate) fn revoke_all(&self) {
        if let Self::Simple { sessions, .. } = self {
            sessions.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

impl Jwt {
    fn issue(&self, user: &str, revision: u64) -> Result<String, AuthError> {
        let key = self.private.as_ref().ok_or(AuthError::InvalidAuthMgmt)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let claims =
            Claims { username: user.to_owned(), revision, exp: (now + self.ttl).as_secs() };
        encode(&Header::new(self.algorithm), &claims, key).map_err(|_| AuthError::InvalidAuthMgmt)
    }

    fn user(&self, token: &str) -> Result<(String, Option<u64>), AuthError> {
        let mut validation = Validation::new(self.algorithm);
        validation.leeway = 0;
        let claims = decode::<Claims>(token, &self.public, &validation)
            .map_err(|_| AuthError::InvalidAuthToken)?
            .claims;
        Ok((claims.username, Some(claims.revision)))
    }
}

/// The family an algorithm's keys are of, by its name.
fn family(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => "HS",
        Algorithm::ES256 | Algorithm::ES384 => "ES",
        Algorithm::EdDSA => "Ed",
        _ => "RS",
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TokenError> {
    std::fs::read(path).map_err(|error| TokenError(format!("{}: {error}", path.display())))
}

fn unusable(path: &Path, error: &jsonwebtoken::errors::Error) -> TokenError {
    TokenError(format!("{}: not a key for this sign-method: {error}", path.display()))
}

fn decoding_key(algorithm: Algorithm, path: &Path) -> Result<DecodingKey, TokenError> {
    let pem = read(path)?;
    match family(algorithm) {
        "HS" => Ok(DecodingKey::from_secret(&pem)),
        "ES" => DecodingKey::from_ec_pem(&pem),
        "Ed" => DecodingKey::from_ed_pem(&pem),
        _ => DecodingKey::from_rsa_pem(&pem),
    }
    .map_err(|error| unusable(path, &error))
}

fn encoding_key(algorithm: Algorithm, path: &Path) -> Result<EncodingKey, TokenError> {
    let pem = read(path)?;
    match family(algorithm) {
        "HS" => Ok(EncodingKey::from_secret(&pem)),
        "ES" => EncodingKey::from_ec_pem(&pem),
        "Ed" => EncodingKey::from_ed_pem(&pem),
        _ => EncodingKey::from_rsa_pem(&pem),
    }
    .map_err(|error| unusable(path, &error))
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Simple { .. } => "simple tokens",
            Self::Jwt(_) => "JWT",
        })
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TokenError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(secret: &str) -> Jwt {
        Jwt {
            algorithm: Algorithm::HS256,
            public: DecodingKey::from_secret(secret.as_bytes()),
            private: Some(EncodingKey::from_secret(secret.as_bytes())),
            ttl: Duration::from_secs(60),
        }
    }

    #[test]
    fn words_that_speak_for_themselves_are_known_by_their_key_and_end() {
        let ours = jwt("secret");
        let token = ours.issue("eva", 7).expect("there is a key");
        assert_eq!(ours.user(&token), Ok(("eva".to_owned(), Some(7))));
        assert_eq!(jwt("other").user(&token), Err(AuthError::InvalidAuthToken));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let claims = Claims { username: "eva".to_owned(), revision: 7, exp: now - 5 };
        let key = EncodingKey::from_secret(b"secret");
        let ended = encode(&Header::new(Algorithm::HS256), &claims, &key).expect("it is signed");
        assert_eq!(ours.user(&ended), Err(AuthError::InvalidAuthToken));
    }

    #[test]
    fn remembered_words_end_unless_they_are_used() {
        let ends = |token: &str, tokens: &Tokens| {
            let Tokens::Simple { sessions, .. } = tokens else { unreachable!("made simple") };
            let digest: [u8; 32] = Sha256::digest(token).into();
            sessions.lock().expect("nobody panicked")[&digest].ends
        };
        let simple = |ttl| Tokens::new(&TokenKind::Simple { ttl }).expect("nothing to read");
        let tokens = simple(Duration::from_secs(60));
        let token = tokens.issue("eva", 7).expect("it always gives some");
        let first = ends(&token, &tokens);
        assert_eq!(tokens.user(&token), Ok(("eva".to_owned(), None)));
        assert!(ends(&token, &tokens) > first, "its life begins anew");
        assert_eq!(tokens.user("other"), Err(AuthError::InvalidAuthToken));
        let tokens = simple(Duration::ZERO);
        let token = tokens.issue("eva", 7).expect("it always gives some");
        assert_eq!(tokens.user(&token), Err(AuthError::InvalidAuthToken));
    }
}
