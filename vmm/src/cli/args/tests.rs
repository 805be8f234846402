//! The command line as clap sees it.

use clap::CommandFactory;

use super::*;

fn run(args: &[&str]) -> Result<RunArgs, clap::Error> {
    let words = ["paddock", "run"].iter().chain(args);
    Cli::try_parse_from(words).map(|cli| {
        let Command::Run(args) = cli.command else {
            panic!("not run")
        };
        *args
    })
}

#[test]
fn clap_finds_no_mistake() {
    Cli::command().debug_assert();
}

#[test]
fn the_help_tells_what_becomes_of_descriptors() {
    let mut cli = Cli::command();
    let run = cli.find_subcommand_mut("run").unwrap();
    let help = run.render_long_help().to_string();
    for told in [
        "what failed with it has used it as well",
        "Only a rotated log (log=) is always opened by its path",
    ] {
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(told), "{told}");
    }
}

#[test]
fn flags() {
    let args = run(&[
        "--kernel",
        "k",
        "--cmdline",
        "--a -b",
        "--disk",
        "a",
        "--disk=b",
        "--log-level",
        "debug",
        "--log-format",
        "json",
        "--escape-key",
        "^a",
        "--on-reset",
        "exit",
    ])
    .unwrap();
    assert_eq!(args.vm.cmdline.as_deref(), Some("--a -b"));
    assert_eq!(args.vm.disk, ["a", "b"]);
    assert_eq!(args.log.log_level, LogLevel::Debug);
    assert_eq!(args.log.log_format, LogFormat::Json);
    assert_eq!(args.vm.on_reset, Some(OnResetArg::Exit));
    assert_eq!(
        args.escape_key,
        Some(EscapeChoice::Key("ctrl-a".parse().unwrap()))
    );
    assert_eq!(args.shutdown_timeout, 30);
    let kvm = run(&["--kernel", "k", "--kvm", "fd:3"]).unwrap().kvm;
    assert_eq!(kvm, Some(PassedFd::Number(3)));
    assert!(run(&["--spec", "-"]).unwrap().vm.kernel.is_none());
    for (words, balloon) in [
        (&["--kernel", "k"][..], None),
        (&["--balloon", "--kernel", "k"], Some("0")),
        (&["--kernel", "k", "--balloon", "1G"], Some("1G")),
    ] {
        assert_eq!(run(words).unwrap().vm.balloon.as_deref(), balloon);
    }
    assert_eq!(
        run(&["--kernel", "k", "--escape-key", "none"])
            .unwrap()
            .escape_key,
        Some(EscapeChoice::None)
    );
}

#[test]
fn usage_errors() {
    let missing = run(&[]).unwrap_err().to_string();
    assert!(missing.contains("--kernel <FILE>"), "{missing}");
    for bad in [
        &["--kernel", "k", "--escape-key", "q"][..],
        &["--kernel", "k", "--shutdown-timeout", "-1"],
        &["--kernel", "k", "--disks", "a"],
        &["--kernel", "k", "extra"],
        &["--kernel", "k", "--kernel", "k"],
        &["--kernel", "k", "--log-level", "loud"],
        &["--kernel", "k", "--kvm", "/dev/kvm"],
        &["--kernel", "k", "--kvm", "fd:2"],
    ] {
        assert_eq!(run(bad).unwrap_err().exit_code(), 2, "{bad:?}");
    }
}

#[test]
fn doctor() {
    let doctor = |args: &[&str]| {
        let words = ["paddock", "doctor"].iter().chain(args);
        Cli::try_parse_from(words).map(|cli| match cli.command {
            Command::Doctor(args) => args,
            other => panic!("{other:?}"),
        })
    };
    let args = doctor(&["--json", "--directory", "a", "--directory", "b"]).unwrap();
    assert!(args.json);
    assert_eq!(args.directory, [PathBuf::from("a"), PathBuf::from("b")]);
    assert_eq!(doctor(&["a"]).unwrap_err().exit_code(), 2);
    let help = doctor(&["--help"]).unwrap_err().to_string();
    for text in ["Exit status", "no VM can run", "degraded", "\"checks\""] {
        assert!(help.contains(text), "{text} is not in\n{help}");
    }
}

#[test]
fn serve() {
    let serve = |args: &[&str]| {
        let words = ["paddock", "serve"].iter().chain(args);
        match Cli::try_parse_from(words)?.command {
            Command::Serve(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    };
    let args = serve(&["--api-socket", "/run/a.sock", "--log-level", "info"]).unwrap();
    assert_eq!(args.api_socket, Some(PathBuf::from("/run/a.sock")));
    assert_eq!(serve(&[]).unwrap().api_socket, None);
    assert_eq!(args.shutdown_timeout, 30);
    for bad in [
        &["--api-socket"][..],
        &["--api-socket", "a", "--kernel", "k"],
        &["--api-socket", "a", "--shutdown-timeout", "86401"],
    ] {
        let error: clap::Error = serve(bad).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{bad:?}");
    }
    let help = serve(&["--help"]).unwrap_err().to_string();
    for text in ["/api/v1", "curl --unix-socket", "Exit status"] {
        assert!(help.contains(text), "{text} is not in\n{help}");
    }
    let run = run(&["--kernel", "k", "--api-socket", "a"]).unwrap();
    assert_eq!(run.api_socket, Some(PathBuf::from("a")));
}

#[test]
fn help_tells_what_matters() {
    let help = run(&["--help"]).unwrap_err().to_string();
    for text in [
        "Exit status",
        "Ctrl-] q",
        "Examples",
        "What to boot:",
        "io_uring",
        "socat -,raw,echo=0",
        "NOTIFY_SOCKET",
    ] {
        assert!(help.contains(text), "{text} is not in\n{help}");
    }
}
