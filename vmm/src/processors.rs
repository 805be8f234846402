//! A VM's CPUs as others see them: how many it started with, how many there may be, are wanted, and are there.
//!
//! Made with the state driver, which alone plugs CPUs in and takes them out; lives through resets of the machine: as many as are wanted
//! are there when it starts again. Read and asked on the control plane's thread.
//!
//! CPUs have numbers, from 0 on. Those that come have the lowest numbers that are free, those that are to go the highest; CPU 0 stays.
//! Whether and when one goes is the guest's decision, so there may be gaps.

use std::collections::BTreeSet;
use std::sync::Arc;

use paddock_api::spec::VmSpec;
use parking_lot::Mutex;

/// Why a VM cannot have so many CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorsError {
    /// Their number does not change.
    #[error("the CPUs stay {count}; the spec must tell their max when the VM is created")]
    Fixed {
        /// How many there are.
        count: u8,
    },
    /// There can be more, or fewer.
    #[error("there can be 1 to {max} CPUs, not {wanted}")]
    OutOfRange {
        /// How many were asked for.
        wanted: u64,
        /// How many there may be.
        max: u8,
    },
}

/// A VM's CPUs at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessorsStatus {
    /// How many the VM started with.
    pub count: u8,
    /// How many there may be.
    pub max: u8,
    /// How many are wanted.
    pub wanted: u8,
    /// How many are there: plugged in, and not let go of by the guest.
    pub present: usize,
    /// The job that changes their number.
    pub job: Option<u64>,
}

/// What has to be done to have as many as are wanted. By number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Difference {
    /// These are missing.
    Missing(Vec<u32>),
    /// These are too many; nothing is to be done if there are none.
    Surplus(Vec<u32>),
}

impl Difference {
    /// How many have to come or go.
    pub(crate) fn number(&self) -> u64 {
        let (Self::Missing(cpus) | Self::Surplus(cpus)) = self;
        cpus.len() as u64
    }

    /// Whether the guest has to let go of some.
    pub(crate) fn shrinks(&self) -> bool {
        matches!(self, Self::Surplus(cpus) if !cpus.is_empty())
    }
}

#[derive(Debug)]
struct Inner {
    count: u8,
    max: u8,
    wanted: u8,
    present: BTreeSet<u32>,
    job: Option<u64>,
}

/// A VM's CPUs. Clones are the same ones.
#[derive(Debug, Clone)]
pub struct Processors(Arc<Mutex<Inner>>);

impl Processors {
    /// Those of a VM that has not started.
    pub(crate) fn new(spec: &VmSpec) -> Self {
        let (count, max) = (spec.cpus.count, spec.cpus.max);
        Self(Arc::new(Mutex::new(Inner {
            count,
            max,
            wanted: count,
            present: (0..count.into()).collect(),
            job: None,
        })))
    }

    /// How they are now.
    #[must_use]
    pub fn status(&self) -> ProcessorsStatus {
        let inner = self.0.lock();
        ProcessorsStatus {
            count: inner.count,
            max: inner.max,
            wanted: inner.wanted,
            present: inner.present.len(),
            job: inner.job,
        }
    }

    /// So many that there can be.
    ///
    /// # Errors
    /// When there cannot.
    pub fn check(&self, wanted: u64) -> Result<u8, ProcessorsError> {
        let inner = self.0.lock();
        let (count, max) = (inner.count, inner.max);
        if max == count {
            return Err(ProcessorsError::Fixed { count });
        }
        let fits = u8::try_from(wanted).ok();
        fits.filter(|wanted| (1..=max).contains(wanted))
            .ok_or(ProcessorsError::OutOfRange { wanted, max })
    }

    /// Notes that `wanted` CPUs, which were checked, are wanted from now on, and that the job which is started sees to what is to be done.
    ///
    /// # Errors
    /// The job that does so already.
    pub(crate) fn begin<E>(
        &self,
        wanted: u8,
        start: impl FnOnce(&Difference) -> Result<u64, E>,
    ) -> Result<Result<(), E>, u64> {
        let mut inner = self.0.lock();
        if let Some(job) = inner.job {
            return Err(job);
        }
        match start(&inner.difference(wanted)) {
            Ok(job) => {
                inner.job = Some(job);
                inner.wanted = wanted;
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    /// The machine starts with as many as are wanted, which are returned.
    pub(crate) fn start(&self) -> usize {
        let mut inner = self.0.lock();
        inner.present = (0..inner.wanted.into()).collect();
        inner.present.len()
    }

    /// What has to be done.
    pub(crate) fn difference(&self) -> Difference {
        let inner = self.0.lock();
        inner.difference(inner.wanted)
    }

    /// This one is plugged in.
    pub(crate) fn plugged_in(&self, number: u32) {
        self.0.lock().present.insert(number);
    }

    /// The guest has let go of this one.
    pub(crate) fn let_go(&self, number: u32) {
        let mut inner = self.0.lock();
        inner.present.remove(&number);
        if inner.job.is_none() {
            inner.settle();
        }
    }

    /// The job is over, and what there is now is what is wanted.
    pub(crate) fn settle(&self) {
        let mut inner = self.0.lock();
        inner.job = None;
        inner.settle();
    }

    /// The job is over: the machine that is built next has what is wanted, or there is none any more.
    pub(crate) fn forget_job(&self) {
        self.0.lock().job = None;
    }
}

impl Inner {
    fn difference(&self, wanted: u8) -> Difference {
        let (wanted, present) = (usize::from(wanted), self.present.len());
        if present < wanted {
            let absent = (0..self.max.into()).filter(|number| !self.present.contains(number));
            return Difference::Missing(absent.take(wanted - present).collect());
        }
        let highest = self.present.iter().rev().copied();
        Difference::Surplus(highest.take(present - wanted).collect())
    }

    fn settle(&mut self) {
        self.wanted = u8::try_from(self.present.len()).unwrap_or(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processors(cpus: &str) -> Processors {
        let text = format!(r#"{{"boot": {{"kernel": "k"}}, "cpus": {cpus}}}"#);
        Processors::new(&VmSpec::from_json(&text).unwrap())
    }

    fn begin(processors: &Processors, wanted: u8) -> Result<Result<(), ()>, u64> {
        processors.begin(wanted, |_| Ok(7))
    }

    #[test]
    fn only_what_can_be_is_wanted() {
        let fixed = processors(r#"{"count": 2}"#);
        let error = fixed.check(2).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the CPUs stay 2; the spec must tell their max when the VM is created"
        );
        let four = processors(r#"{"count": 2, "max": 4}"#);
        for wanted in [0, 5, 256, u64::MAX] {
            let error = four.check(wanted).unwrap_err();
            let expected = format!("there can be 1 to 4 CPUs, not {wanted}");
            assert_eq!(error.to_string(), expected);
        }
        assert_eq!([1, 4].map(|wanted| four.check(wanted)), [Ok(1), Ok(4)]);
    }

    #[test]
    fn the_lowest_come_and_the_highest_go() {
        let cpus = processors(r#"{"count": 1, "max": 4}"#);
        assert_eq!(cpus.start(), 1);
        assert_eq!(begin(&cpus, 3), Ok(Ok(())));
        assert_eq!(begin(&cpus, 4), Err(7), "one job at a time");
        assert_eq!(cpus.difference(), Difference::Missing(vec![1, 2]));
        cpus.plugged_in(1);
        cpus.plugged_in(2);
        assert_eq!(cpus.difference(), Difference::Surplus(vec![]));
        cpus.settle();

        assert_eq!(begin(&cpus, 1), Ok(Ok(())));
        assert_eq!(cpus.difference(), Difference::Surplus(vec![2, 1]));
        // The guest keeps one, and it is not the lowest.
        cpus.let_go(1);
        assert_eq!(cpus.status().wanted, 1);
        cpus.settle();
        let status = cpus.status();
        assert_eq!((status.wanted, status.present, status.job), (2, 2, None));
        assert_eq!(begin(&cpus, 4), Ok(Ok(())));
        assert_eq!(cpus.difference(), Difference::Missing(vec![1, 3]));
    }

    #[test]
    fn what_is_wanted_outlives_a_reset_and_nothing_else_does() {
        let cpus = processors(r#"{"count": 3, "max": 4}"#);
        cpus.start();
        assert_eq!(begin(&cpus, 2), Ok(Ok(())));
        cpus.forget_job();
        assert_eq!(cpus.start(), 2);
        let status = cpus.status();
        assert_eq!((status.wanted, status.present, status.job), (2, 2, None));
        // Let go of at the last moment, when nobody waited any more.
        cpus.let_go(1);
        assert_eq!(cpus.status().wanted, 1);
    }

    #[test]
    fn a_job_that_does_not_begin_changes_nothing() {
        let cpus = processors(r#"{"count": 3, "max": 4}"#);
        let mut told = None;
        let result = cpus.begin(1, |difference| {
            told = Some(difference.clone());
            Err("no")
        });
        assert_eq!(result, Ok(Err("no")));
        let told = told.unwrap();
        assert_eq!(told, Difference::Surplus(vec![2, 1]));
        assert_eq!((told.number(), told.shrinks()), (2, true));
        let status = cpus.status();
        assert_eq!((status.wanted, status.job), (3, None));
    }
}
