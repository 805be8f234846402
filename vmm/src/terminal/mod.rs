//! The terminal: what the guest prints goes to standard output, what is typed goes to the guest.
//!
//! - [`output`]: a bounded buffer and a writer thread between the guest's threads and a descriptor that may block for ever.
//! - [`keyboard`]: a thread that reads standard input; on a terminal it obeys the escape key ([`escape`]).
//! - [`raw`]: the terminal's raw mode and its way back, on every path out of the process.
//!
//! The guest chooses every byte of the output, and how fast. It cannot block us, and we keep a bounded number of its bytes.

pub mod escape;
pub mod keyboard;
pub mod output;
pub mod raw;

pub use escape::{Command, EscapeKey};
pub use keyboard::Keyboard;
pub use output::Output;
pub use raw::RawMode;
