//! The HTTP API of a Paddock process, and the VM spec that it takes. Knows no KVM.
//!
//! ```text
//!  client ──unix socket──▶ server ──▶ service::VmService  (the vmm crate's; a fake in tests)
//!                            │              │
//!                            └── events ◀── journal
//! ```
//!
//! Whatever comes in here comes from outside: a file, a command line, an API client. [`spec`] is the VM as users write it and as the
//! machine trusts it; [`resource`] and [`problem`] are what the API answers; [`server`] serves it on a unix socket.

pub mod balloon;
pub mod cdrom;
pub mod cpus;
pub mod device;
pub mod disk;
pub mod jobs;
pub mod journal;
pub mod memory;
pub mod metrics;
pub mod openapi;
pub mod problem;
pub mod resource;
pub mod server;
pub mod service;
pub mod spec;
pub mod timeline;
pub mod volume;
