//! The VM spec: what a VM is made of, as users write it and as the machine trusts it. Knows no KVM.
//!
//! Whatever comes in here comes from outside: a file, a command line, an API client. See [`spec`].

pub mod spec;
