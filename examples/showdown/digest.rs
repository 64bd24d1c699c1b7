//! What was said, as a number that is short enough to print.

use sha2::{Digest as _, Sha256};

/// A digest of lines in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Digest(Sha256);

impl Digest {
    pub(crate) fn line(&mut self, line: &str) {
        self.0.update(line);
        self.0.update("\n");
    }

    /// In hexadecimal.
    pub(crate) fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
