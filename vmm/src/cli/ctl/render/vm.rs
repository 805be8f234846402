//! The VM.

use std::path::Path;

use paddock_api::resource::{Variables, Vm};
use paddock_api::spec::{
    BootConfig, ConsoleConfig, ConsoleLogConfig, ConsoleTarget, CpuConfig, MemoryConfig, VmConfig,
};
use paddock_api::timeline::Timeline;

use super::devices::{attachment, disk_options, failure, path};
use super::{Cell, Colour, Page, word};

/// The VM: its state and its parts.
pub fn vm(page: &mut Page, vm: &Vm) {
    let spec = &vm.spec;
    let mut properties = vec![
        ("name", one(spec.name.as_deref())),
        ("state", vec![Cell::state(&vm.state)]),
    ];
    if let Some(end) = &vm.end {
        properties.push(("end", vec![Cell::state(&end.reason)]));
        properties.push(("concerns", one(end.pointer.as_deref())));
        // A crash has many lines.
        let detail = end.detail.as_deref().unwrap_or_default();
        let detail = detail.lines().map(Cell::new);
        properties.push(("detail", detail.collect()));
    }
    let failures = vm.disk_failures.iter().map(|one| {
        let told = format!("{}: {}", one.disk, failure(one));
        Cell::coloured(told, Colour::Red)
    });
    properties.push(("failures", failures.collect()));
    properties.extend([
        ("UUID", one(spec.uuid.as_deref())),
        ("boot", boot(spec.boot.as_ref())),
        ("CPUs", spec.cpus.as_ref().map(cpus).into_iter().collect()),
        (
            "memory",
            spec.memory.as_ref().map(memory).into_iter().collect(),
        ),
        ("balloon", balloon(spec)),
        ("disks", disks(spec)),
        ("CD-ROM drives", cdroms(spec)),
        ("NICs", nics(spec)),
    ]);
    properties.extend(spec.console.as_ref().map(consoles).unwrap_or_default());
    properties.extend([
        ("variables", variables(vm.variables.as_ref())),
        ("timeline", timeline(&vm.timeline)),
        ("on reset", one(spec.on_reset.map(|what| word(&what)))),
        ("last event", vec![Cell::new(vm.last_event.to_string())]),
    ]);
    page.properties(properties);
}

/// Whether the file of the firmware's variables is as it is to be.
fn variables(variables: Option<&Variables>) -> Vec<Cell> {
    let Some(variables) = variables else {
        return Vec::new();
    };
    let cell = match &variables.error {
        Some(error) => Cell::coloured(error, Colour::Red),
        None if variables.unsaved => Cell::coloured("about to be written", Colour::Dim),
        None => Cell::new("written"),
    };
    vec![cell]
}

/// How long after the process's start each step came.
fn timeline(timeline: &Timeline) -> Vec<Cell> {
    let steps = timeline.steps().into_iter();
    let told = steps.filter_map(|(step, microseconds)| {
        let microseconds = microseconds?;
        let (whole, tenths) = (microseconds / 1000, microseconds % 1000 / 100);
        let step = step.replace('_', " ");
        Some(Cell::new(format!("{step} after {whole}.{tenths} ms")))
    });
    told.collect()
}

fn one(text: Option<impl AsRef<str>>) -> Vec<Cell> {
    text.map(Cell::new).into_iter().collect()
}

fn shown(path: &Path) -> Cell {
    Cell::new(path.display().to_string())
}

fn boot(boot: Option<&BootConfig>) -> Vec<Cell> {
    let Some(boot) = boot else {
        return Vec::new();
    };
    let mut lines: Vec<_> = boot.kernel.iter().map(|path| shown(path)).collect();
    lines.extend(boot.initramfs.iter().map(|path| shown(path)));
    if let Some(firmware) = &boot.firmware {
        let image = firmware.path.as_deref();
        lines.push(image.map_or_else(|| Cell::new("the host's UEFI"), shown));
        lines.extend(firmware.variables.iter().map(|path| shown(path)));
    }
    if !boot.order.is_empty() {
        lines.push(Cell::new(boot.order.join(", ")));
    }
    let line = boot.command_line.as_deref().unwrap_or_default();
    if !line.is_empty() {
        lines.push(Cell::coloured(line, Colour::Dim));
    }
    lines
}

fn cpus(cpus: &CpuConfig) -> Cell {
    let mut text = cpus.count.unwrap_or(1).to_string();
    if let Some(max) = cpus.max {
        text += &format!(", up to {max}");
    }
    if let Some(topology) = &cpus.topology {
        let part = |count: Option<u64>, what: &str| {
            let count = count.unwrap_or(1);
            let plural = if count == 1 { "" } else { "s" };
            format!("{count} {what}{plural}")
        };
        text += &format!(
            " ({}, {}, {})",
            part(topology.sockets, "socket"),
            part(topology.cores, "core"),
            part(topology.threads, "thread")
        );
    }
    if cpus.nested == Some(true) {
        text += ", may run VMs";
    }
    Cell::new(text)
}

fn memory(memory: &MemoryConfig) -> Cell {
    let mut text = memory.size.map(|size| size.to_string()).unwrap_or_default();
    if let Some(max) = memory.max {
        text += &format!(", up to {max}");
    }
    if memory.shared == Some(true) {
        text += ", shared";
    }
    if let Some(size) = memory.hugepages {
        text += &format!(", in huge pages of {size}");
    }
    Cell::new(text)
}

fn balloon(spec: &VmConfig) -> Vec<Cell> {
    let Some(balloon) = &spec.balloon else {
        return Vec::new();
    };
    let mut text = balloon
        .size
        .map_or_else(|| "yes".to_owned(), |size| format!("{size} at first"));
    if balloon.deflate_on_oom == Some(true) {
        text += ", deflates before the guest kills";
    }
    if balloon.free_page_reporting == Some(true) {
        text += ", free pages are reported";
    }
    vec![Cell::new(text)]
}

fn disks(spec: &VmConfig) -> Vec<Cell> {
    let disks = spec.disks.iter().map(|disk| {
        let options = disk_options(disk);
        let options = if options.is_empty() {
            options
        } else {
            format!(" ({options})")
        };
        let id = disk.id.as_deref().unwrap_or_default();
        Cell::new(format!("{id}: {}{options}", path(disk)))
    });
    disks.collect()
}

fn cdroms(spec: &VmConfig) -> Vec<Cell> {
    let drives = spec.cdroms.iter().map(|cdrom| {
        let id = cdrom.id.as_deref().unwrap_or_default();
        let path = cdrom.path.as_ref();
        let medium = path.map_or_else(|| "empty".to_owned(), |path| path.display().to_string());
        Cell::new(format!("{id}: {medium} at first"))
    });
    drives.collect()
}

fn nics(spec: &VmConfig) -> Vec<Cell> {
    let nics = spec.nics.iter().map(|nic| {
        let id = nic.id.as_deref().unwrap_or_default();
        let mac = nic.mac.as_ref().map(|mac| format!(" ({mac})"));
        Cell::new(format!(
            "{id}: {}{}",
            attachment(nic),
            mac.unwrap_or_default()
        ))
    });
    nics.collect()
}

fn consoles(console: &ConsoleConfig) -> Vec<(&'static str, Vec<Cell>)> {
    let ports = console.ports.iter().map(|port| {
        let name = port.name.as_deref().unwrap_or_default();
        let socket = port.socket.as_deref().unwrap_or(Path::new(""));
        Cell::new(format!("{name}: {}", socket.display()))
    });
    vec![
        (
            "serial",
            target(console.serial.as_ref(), console.serial_log.as_ref()),
        ),
        (
            "hvc0",
            target(console.hvc0.as_ref(), console.hvc0_log.as_ref()),
        ),
        ("ports", ports.collect()),
    ]
}

fn target(target: Option<&ConsoleTarget>, log: Option<&ConsoleLogConfig>) -> Vec<Cell> {
    let place = target.map(|target| match target {
        ConsoleTarget::Terminal => "terminal".to_owned(),
        ConsoleTarget::Off => "off".to_owned(),
        ConsoleTarget::File(path) => format!("file {}", path.display()),
        ConsoleTarget::Socket(path) => format!("socket {}", path.display()),
    });
    let log = log.and_then(|log| log.path.as_ref());
    let log = log.map(|path| format!("log {}", path.display()));
    let parts: Vec<_> = place.into_iter().chain(log).collect();
    if parts.is_empty() {
        return Vec::new();
    }
    vec![Cell::new(parts.join(", "))]
}
