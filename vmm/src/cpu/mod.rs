//! What a vCPU is to the guest: its features (CPUID), its place among the others, and the state it starts in.
//!
//! Pure functions on data from KVM, and a few calls on vCPUs that do not run yet; control thread. The guest chooses
//! nothing here, it is what is chosen for the guest.

pub mod cpuid;
pub mod registers;
pub mod topology;
