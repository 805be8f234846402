//! The file of the firmware's variables while the VM runs: all there at a pause, and what becomes of it when it cannot be written.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use paddock_tests::firmware::{APP_DEADLINE, Scratch, Suite, script};
use paddock_tests::{Vm, amount};

/// Much longer than changes wait before they are written.
const LONG: Duration = Duration::from_secs(1);

/// A VM that sets a variable again and again.
fn churning(scratch: &Scratch) -> Vm {
    let vm = Suite::Trixie
        .vm()
        .api()
        .args(scratch.disk("efi-app.raw"))
        .args(scratch.variables())
        .args(script("churn 0"))
        .start();
    vm.wait_for_console("EFI-APP churned", 5, APP_DEADLINE);
    vm
}

#[test]
fn a_pause_is_told_when_the_file_has_all_variables() {
    let scratch = Scratch::new();
    let vm = churning(&scratch);
    let (api, file) = (vm.api(), scratch.path("variables.fd"));
    let mut before = Vec::new();
    for round in 0..amount(2, 40) {
        let mut events = api.events(api.get("/vm").body["last_event"].as_u64().unwrap());
        // At different moments of the writer's time.
        sleep(Duration::from_millis(37 * (round % 8)));
        assert_eq!(api.act("pause").status, 202);
        events.wait_for_state("paused");
        let paused = fs::read(&file).unwrap();
        assert_eq!(api.get("/vm").body["variables"]["unsaved"], false);
        sleep(LONG);
        assert!(fs::read(&file).unwrap() == paused, "something came later");
        assert!(paused != before, "the guest sets nothing");
        before = paused;
        assert_eq!(api.act("resume").status, 202);
        events.wait_for_state("running");
        vm.wait_for_console("EFI-APP churned", console_lines(&vm) + 2, APP_DEADLINE);
    }
}

fn console_lines(vm: &Vm) -> usize {
    vm.console().matches("EFI-APP churned").count()
}

#[test]
fn a_file_that_cannot_be_written_is_told_everywhere_until_it_can() {
    let scratch = Scratch::new();
    let vm = churning(&scratch);
    let api = vm.api();
    let errors = || api.metrics().get("paddock_variables_write_errors_total");
    assert_eq!(errors(), 0.0);
    assert!(api.metrics().get("paddock_variables_writes_total") > 0.0);
    let mut events = api.events(api.get("/vm").body["last_event"].as_u64().unwrap());

    // What is to replace the file has this name, and root is not kept from anything else.
    let obstacle = scratch.path(".variables.fd.new");
    hinder(&obstacle);
    let event = events.wait_for("variables");
    let error = event["error"].as_str().unwrap().to_owned();
    assert!(error.contains("variables.fd: cannot be written"), "{error}");
    let variables = api.get("/vm").body["variables"].clone();
    assert_eq!(variables["error"], error);
    assert_eq!(variables["unsaved"], true);
    assert!(errors() > 0.0);
    assert_eq!(api.metrics().get("paddock_variables_unsaved"), 1.0);
    // The guest goes on, and can be paused.
    vm.wait_for_console("EFI-APP churned", console_lines(&vm) + 2, APP_DEADLINE);
    assert_eq!(api.act("pause").status, 202);
    events.wait_for_state("paused");
    assert_eq!(api.get("/vm").body["variables"]["unsaved"], true);

    fs::remove_dir(&obstacle).unwrap();
    let event = events.wait_for("variables");
    assert!(event.get("error").is_none(), "{event}");
    let variables = api.get("/vm").body["variables"].clone();
    assert_eq!(variables, serde_json::json!({"unsaved": false}));
    assert_eq!(api.metrics().get("paddock_variables_unsaved"), 0.0);
}

/// Puts a directory where the file is written, between two writes.
fn hinder(path: &Path) {
    while let Err(error) = fs::create_dir(path) {
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
        sleep(Duration::from_millis(1));
    }
}
