//! The engine for hosts without io_uring: threads that block in system calls.
#![expect(unsafe_code, reason = "preadv and pwritev on raw segments")]

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::Image;
use super::memory::Bounces;
use super::task::{Progress, Step, Task};
use crate::threads::Work;
use crate::{IoError, Request};

impl Work for Image {
    type Task = Task;
    type Scratch = Bounces;

    fn path(&self) -> &Path {
        &self.path
    }

    fn scratch() -> Bounces {
        // A thread has one task.
        Bounces::new(1)
    }

    fn accept(&self, request: Request) -> Result<Task, Result<(), IoError>> {
        Task::new(request, self)
    }

    fn carry_out(&self, mut task: Task, bounces: &mut Bounces) -> Result<(), IoError> {
        let result = carry_out(&mut task, self, bounces);
        task.release(bounces);
        result
    }
}

fn carry_out(task: &mut Task, image: &Image, bounces: &mut Bounces) -> Result<(), IoError> {
    loop {
        let Some(step) = task.prepare(image, bounces) else {
            // There is a bounce buffer for the one task.
            return Err(IoError::Os(libc::ENOMEM));
        };
        if let Progress::Done(result) = task.finish(call(step, image), image) {
            return result;
        }
        if task.is_retry() {
            std::thread::yield_now();
        }
    }
}

/// Makes the system call; the result is as io_uring gives it.
fn call(step: Step, image: &Image) -> i32 {
    let fd = image.file.as_raw_fd();
    // Offsets were checked against the disk's size, which is a file offset and so fits.
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let result = match step {
        // SAFETY: the task keeps `segments` of `n` valid segments alive until the step is finished.
        Step::Read(segments, n, offset) => unsafe {
            libc::preadv(fd, segments, count(n), signed(offset))
        },
        // SAFETY: as above.
        Step::Write(segments, n, offset) => unsafe {
            libc::pwritev(fd, segments, count(n), signed(offset))
        },
        // SAFETY: no memory is involved.
        Step::Sync => unsafe { libc::fdatasync(fd) as isize },
        // SAFETY: no memory is involved.
        Step::Allocate(mode, offset, length) => unsafe {
            libc::fallocate(fd, mode, signed(offset), signed(length)) as isize
        },
    };
    if result < 0 {
        -io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)
    } else {
        i32::try_from(result).unwrap_or(i32::MAX)
    }
}
