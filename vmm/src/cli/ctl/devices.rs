//! Disks and NICs: listed, shown, added, removed.

use std::path::Path;

use hyper::Method;
use paddock_api::device::{Disk, Nic};
use paddock_api::disk::DiskSize;
use paddock_api::spec::{DiskLimits, SyntaxError};
use serde::Serialize;
use serde_json::{Value, json};

use super::CtlError;
use super::args::{AddArgs, DisksCommand, NicsCommand, RemoveArgs};
use super::client::Call;
use super::paths::{make_described_absolute, make_disk_absolute};
use super::session::Session;
use super::{jobs, render};
use crate::cli::flags;
use crate::cli::options::OptionError;
use crate::cli::spec::{SpecInput, read_text};

/// `paddock ctl disks`
pub async fn disks(session: &Session, command: &DisksCommand) -> Result<(), CtlError> {
    match command {
        DisksCommand::List => {
            let call = Call::get(&["vm", "disks"]);
            let list = |page: &mut _, disks: &Vec<Disk>| render::disks(page, disks);
            session.show(call, list).await
        }
        DisksCommand::Show(args) => {
            let call = Call::get(&["vm", "disks", &args.id]);
            let one = |page: &mut _, disk: &Disk| render::disks(page, std::slice::from_ref(disk));
            session.show(call, one).await
        }
        DisksCommand::Add(args) => {
            let words = args.disk.as_deref();
            let read = |words: &str| {
                let mut disk = flags::disk(words)?;
                make_disk_absolute(&mut disk);
                Ok(disk)
            };
            let body = described(words, "DISK", read, args.more.spec.as_deref())?;
            add(session, "disks", body, &args.more).await
        }
        DisksCommand::Remove(args) => remove(session, "disks", args).await,
        DisksCommand::Limit(args) => {
            let limits = DiskLimits {
                iops: args.iops,
                iops_burst: args.iops_burst,
                bandwidth: args.bandwidth,
                bandwidth_burst: args.bandwidth_burst,
            };
            let path = ["vm", "disks", &args.id, "limits"];
            let call = Call::new(Method::PUT, &path).body(json!(limits).to_string());
            let one = |page: &mut _, disk: &Disk| render::disks(page, std::slice::from_ref(disk));
            session.show(call, one).await
        }
        DisksCommand::Resize(args) => {
            let body = json!(DiskSize { size: args.size }).to_string();
            let call = Call::new(Method::PUT, &["vm", "disks", &args.id, "size"]).body(body);
            let one = |page: &mut _, disk: &Disk| render::disks(page, std::slice::from_ref(disk));
            session.show(call, one).await
        }
    }
}

/// `paddock ctl nics`
pub async fn nics(session: &Session, command: &NicsCommand) -> Result<(), CtlError> {
    match command {
        NicsCommand::List => {
            let call = Call::get(&["vm", "nics"]);
            let list = |page: &mut _, nics: &Vec<Nic>| render::nics(page, nics);
            session.show(call, list).await
        }
        NicsCommand::Show(args) => {
            let call = Call::get(&["vm", "nics", &args.id]);
            let one = |page: &mut _, nic: &Nic| render::nics(page, std::slice::from_ref(nic));
            session.show(call, one).await
        }
        NicsCommand::Add(args) => {
            let words = args.net.as_deref();
            let body = described(words, "NET", flags::net, args.more.spec.as_deref())?;
            add(session, "nics", body, &args.more).await
        }
        NicsCommand::Remove(args) => remove(session, "nics", args).await,
    }
}

async fn add(session: &Session, list: &str, body: String, args: &AddArgs) -> Result<(), CtlError> {
    let call = Call::new(Method::POST, &["vm", list]).body(body);
    let answer = session.client.call(call).await?;
    jobs::finish(session, answer, args.wait.into()).await
}

async fn remove(session: &Session, list: &str, args: &RemoveArgs) -> Result<(), CtlError> {
    let mut call = Call::new(Method::DELETE, &["vm", list, &args.id]);
    if let Some(seconds) = args.deadline {
        call = call.with("deadline_ms", seconds.saturating_mul(1000));
    }
    let answer = session.client.call(call).await?;
    jobs::finish(session, answer, args.wait.into()).await
}

/// A device's description as the API takes it, from an option list or from a file.
fn described<T: Serialize>(
    words: Option<&str>,
    argument: &'static str,
    read: impl FnOnce(&str) -> Result<T, Vec<OptionError>>,
    file: Option<&Path>,
) -> Result<String, SpecInput> {
    let Some(words) = words else {
        // clap requires one of the two.
        return file.map_or_else(|| Ok(String::new()), from_file);
    };
    let device = read(words).map_err(|errors| {
        let named = |error| OptionError {
            flag: argument,
            ..error
        };
        SpecInput::Options(errors.into_iter().map(named).collect())
    })?;
    serde_json::to_string(&device).map_err(|_| SpecInput::NotText)
}

/// The text as it is, so that the places of what is wrong are those in the file. Only relative paths are made absolute; a NIC has none in
/// the places of a disk's.
fn from_file(path: &Path) -> Result<String, SpecInput> {
    let text = read_text(path)?;
    let mut tree: Value = serde_json::from_str(&text).map_err(|error| SpecInput::Syntax {
        path: path.to_owned(),
        source: SyntaxError {
            line: error.line(),
            column: error.column(),
            detail: without_position(&error),
        },
    })?;
    match make_described_absolute(&mut tree) {
        true => Ok(tree.to_string()),
        false => Ok(text),
    }
}

/// `serde_json` says the place at the end.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}
