//! A raw file, by Paddock's backend and by fio, both with io_uring and around the page cache. Requests a second.

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use serde::Deserialize;

use super::FIO;
use super::load::{Load, SECONDS, Subject, Want, json, output};
use super::set::{DataFile, SIZE};
use crate::bench::{BenchError, Meter};

/// Paddock's backend.
pub(super) fn paddock(file: &Rc<DataFile>, load: Load) -> Meter {
    let file = Rc::clone(file);
    Box::new(move || {
        let outcome = Subject::File(file.path.clone()).load(load, &[])?;
        Ok(load.value(Want::Iops, &outcome, 0.0))
    })
}

/// fio, which is Debian's.
pub(super) fn fio(file: &Rc<DataFile>, load: Load) -> Meter {
    let file = Rc::clone(file);
    Box::new(move || {
        let text = output(FIO, &mut command(&file.path, load))?;
        Ok(said(&text)?.iops(load))
    })
}

fn command(file: &Path, load: Load) -> Command {
    let kind = match (load.random, load.write) {
        (true, true) => "randwrite",
        (true, false) => "randread",
        (false, true) => "write",
        (false, false) => "read",
    };
    let mut command = Command::new("fio");
    command
        .args(["--name=bench", "--ioengine=io_uring", "--direct=1"])
        // Like disk-load, which does not keep count of where it has been.
        .args(["--norandommap", "--randrepeat=0"])
        .args(["--time_based", "--output-format=json"])
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--size={SIZE}"))
        .arg(format!("--rw={kind}"))
        .arg(format!("--bs={}", load.block))
        .arg(format!("--iodepth={}", load.depth))
        .arg(format!("--runtime={SECONDS}"));
    command
}

/// What fio prints, so far as it is used here.
#[derive(Debug, Deserialize)]
struct Said {
    jobs: [Job; 1],
}

#[derive(Debug, Deserialize)]
struct Job {
    read: Direction,
    write: Direction,
}

#[derive(Debug, Deserialize)]
struct Direction {
    iops: f64,
}

impl Said {
    fn iops(&self, load: Load) -> f64 {
        let [job] = &self.jobs;
        match load.write {
            true => job.write.iops,
            false => job.read.iops,
        }
    }
}

/// Its JSON comes after what it notes.
fn said(text: &str) -> Result<Said, BenchError> {
    let begin = text.find('{').unwrap_or(0);
    json(FIO, text.get(begin..).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load {
        write: true,
        random: true,
        block: 4096,
        depth: 64,
    };

    #[test]
    fn fio_is_asked_for_the_same_load() {
        let command = command(Path::new("/disk"), LOAD);
        let words: Vec<_> = command
            .get_args()
            .filter_map(|word| word.to_str())
            .collect();
        for word in ["--rw=randwrite", "--bs=4096", "--iodepth=64", "--direct=1"] {
            assert!(words.contains(&word), "{words:?}");
        }
    }

    #[test]
    fn what_fio_says() {
        let text = "note: both iodepth >= 1 and synchronous I/O engine are selected\n{\"fio version\": \"fio-3.33\", \
            \"jobs\": [{\"read\": {\"iops\": 0.0, \"bw\": 0}, \"write\": {\"iops\": 1234.5, \"bw\": 4938}}]}";
        assert_eq!(said(text).unwrap().iops(LOAD), 1234.5);
        let read = Load {
            write: false,
            ..LOAD
        };
        assert_eq!(said(text).unwrap().iops(read), 0.0);
        assert!(said("fio: no such file").is_err());
    }
}
