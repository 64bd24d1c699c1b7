//! The keys that leave: Ctrl-P and then Ctrl-Q, as in Docker.

/// Ctrl-P and Ctrl-Q.
const LEAVE: [u8; 2] = [0x10, 0x11];

/// Looks for them in what is typed.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// The first of them was pressed. It is for the service if the other one does not follow.
    has_begun: bool,
}

impl Keys {
    /// What of this is for the service, and whether the user leaves. What was typed behind that is dropped.
    pub(super) fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            let had_begun = std::mem::replace(&mut self.has_begun, byte == LEAVE[0]);
            if had_begun && byte == LEAVE[1] {
                return (passed, true);
            }
            if had_begun {
                passed.push(LEAVE[0]);
            }
            if !self.has_begun {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_keys_leave_and_one_is_for_the_service() {
        let take = |parts: &[&str]| {
            let (mut keys, mut passed) = (Keys::default(), String::new());
            for part in parts {
                let (bytes, leaves) = keys.take(part.as_bytes());
                passed += std::str::from_utf8(&bytes).unwrap();
                if leaves {
                    return (passed, true);
                }
            }
            (passed, false)
        };
        assert_eq!(take(&["ab\x10\x11c"]), ("ab".into(), true));
        assert_eq!(take(&["a\x10", "\x11"]), ("a".into(), true));
        assert_eq!(take(&["\x10\x10\x11"]), ("\x10".into(), true));
        assert_eq!(take(&["\x11\x10", "b"]), ("\x11\x10b".into(), false));
        assert_eq!(take(&["\x10a\x11"]), ("\x10a\x11".into(), false));
    }
}
