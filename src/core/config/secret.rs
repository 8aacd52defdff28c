//! A secret that clients must know.

use std::fmt;

/// Shortest secret, bytes.
const BYTES_MIN: usize = 16;

/// A shared secret. It shows itself to nobody, and a comparison takes as long for a near miss as for a wild guess.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret that a header can carry; `None` if it is too short, or has other characters than visible ASCII.
    pub fn new(secret: String) -> Option<Secret> {
        (secret.len() >= BYTES_MIN && secret.bytes().all(|byte| byte.is_ascii_graphic())).then_some(Secret(secret))
    }

    /// Whether a guess is right. The time that this takes depends on the guess's length alone.
    pub fn accepts(&self, guess: &str) -> bool {
        let difference = guess
            .bytes()
            .zip(self.0.bytes().cycle())
            .fold(0, |difference, (a, b)| std::hint::black_box(difference | (a ^ b)));
        guess.len() == self.0.len() && difference == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn only_the_secret_is_the_secret() {
        let secret = Secret::new("0123456789abcdef".to_owned()).unwrap();
        let rows = [
            ("0123456789abcdef", true),
            ("0123456789abcdeg", false),
            ("1123456789abcdef", false),
            ("0123456789abcde", false),
            ("0123456789abcdef0123456789abcdef", false),
            ("", false),
        ];
        for (guess, right) in rows {
            assert_eq!(secret.accepts(guess), right, "{guess}");
        }
        assert!(!format!("{secret:?}").contains("0123"));
        assert_eq!(Secret::new("short".to_owned()), None);
        assert_eq!(Secret::new("0123456789 abcdef".to_owned()), None);
    }
}
