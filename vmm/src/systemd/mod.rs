//! The process as a service: what systemd, or any agent that speaks its small protocols, passes in and is told.
//!
//! | module | what |
//! |---|---|
//! | [`inherited`] | the variables and descriptors the process is started with, taken once, before anything else |
//! | [`descriptors`] | what becomes of the descriptors: each is used once |
//! | [`notify`] | the datagram socket of `sd_notify(3)` |
//! | [`herald`] | the task that tells READY, STATUS and STOPPING, and keeps the watchdog quiet |
//! | [`journal`] | whether standard error is the journal, and what its lines look like then |
//!
//! Nothing of it costs anything, or is said to anybody, in a process that is started without these variables. Guests influence how often
//! the status changes, which is why it is told at most ten times a second.

pub mod descriptors;
pub mod herald;
pub mod inherited;
pub mod journal;
pub mod notify;
