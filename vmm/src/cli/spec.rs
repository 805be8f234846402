//! The VM spec of a command: from a file, from flags, or from both.
//!
//! A flag replaces what the file says, or adds to its lists. Problems are reported in the words of where they come from: a place in
//! the file, or the flag.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use paddock_api::spec::{
    BalloonConfig, BootConfig, ConsoleLogConfig, ConsoleTarget, CpuConfig, Draft, FirmwareConfig,
    InvalidSpec, JsonPointer, MemoryConfig, OnReset, SmbiosConfig, SyntaxError, TopologyConfig,
    VmConfig, VmSpec,
};

use super::args::{OnResetArg, SpecArgs};
use super::flags;
use super::options::{OptionError, shown};

/// A spec file has at most this many bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why a command's spec is not one.
#[derive(Debug, thiserror::Error)]
pub enum SpecInput {
    /// The file cannot be read.
    #[error("{}", file_name(.path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no spec file by its name or its size.
    #[error("{}: {detail}", file_name(.path))]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        detail: &'static str,
    },
    /// The file is not JSON or TOML.
    #[error("{}", file_name(.path))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: SyntaxError,
    },
    /// Option lists are wrong.
    #[error("{}", list("mistakes in the option lists", .0))]
    Options(Vec<OptionError>),
    /// A path has bytes that JSON cannot have.
    #[error("a path in the spec is not UTF-8 text")]
    NotText,
    /// The spec is wrong: the problems in the user's words.
    #[error("{}", list("problems with the VM spec", .0))]
    Invalid(Vec<String>),
}

impl SpecInput {
    /// Whether the user's words are wrong, as opposed to the host's files.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Read { .. })
    }
}

/// One thing in one line, more as a list.
fn list(what: &str, things: &[impl fmt::Display]) -> String {
    match things {
        [one] => one.to_string(),
        many => many
            .iter()
            .fold(format!("{} {what}:", many.len()), |text, thing| {
                format!("{text}\n  {thing}")
            }),
    }
}

fn file_name(path: &Path) -> String {
    if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    }
}

/// Where parts of a spec come from.
#[derive(Debug, Default)]
pub struct Origins {
    file: Option<PathBuf>,
    flags: Vec<(JsonPointer, String)>,
}

impl Origins {
    fn flag(&mut self, pointer: JsonPointer, name: &str, value: &str) {
        self.flags
            .push((pointer, format!("{name} {}", shown(value))));
    }

    /// The user's words for a place in the spec.
    #[must_use]
    pub fn name(&self, pointer: &JsonPointer) -> String {
        // The last one: a flag for a field is noted after one for the whole.
        let flag = self
            .flags
            .iter()
            .rfind(|(place, _)| pointer.is_within(place));
        match (flag, &self.file) {
            (Some((_, flag)), _) => flag.clone(),
            (None, Some(file)) if pointer.is_root() => file_name(file),
            (None, Some(file)) => format!("{}: {pointer}", file_name(file)),
            (None, None) => pointer.to_string(),
        }
    }

    fn explain(&self, error: &InvalidSpec) -> SpecInput {
        let problems = error.problems().iter();
        let lines = problems.map(|problem| {
            let place = self.name(&problem.pointer);
            let colon = if place.is_empty() { "" } else { ": " };
            format!("{place}{colon}{}", problem.detail)
        });
        SpecInput::Invalid(lines.collect())
    }
}

/// The spec that `args` describe, and where its parts come from.
///
/// # Errors
/// All that is wrong with the option lists, else with the file's syntax, else with the spec.
pub fn assemble(args: &SpecArgs) -> Result<(VmSpec, Origins), SpecInput> {
    let (mut draft, origins) = collect(args)?;
    default_command_line(&mut draft.config);
    let spec = draft.validate().map_err(|error| origins.explain(&error))?;
    Ok((spec, origins))
}

/// The spec that `args` describe for another process, which has no terminal and fills in the defaults. Checked as it would be there.
///
/// # Errors
/// As [`assemble`].
pub fn assemble_for_api(args: &SpecArgs) -> Result<VmConfig, SpecInput> {
    let (draft, origins) = collect(args)?;
    let mut draft = draft.without_terminal();
    default_command_line(&mut draft.config);
    let config = draft.config.clone();
    draft.validate().map_err(|error| origins.explain(&error))?;
    Ok(config)
}

fn collect(args: &SpecArgs) -> Result<(Draft, Origins), SpecInput> {
    let mut origins = Origins::default();
    let mut draft = match &args.spec {
        Some(path) => read(path)?,
        None => Draft::default(),
    };
    origins.file.clone_from(&args.spec);
    let mut errors = Vec::new();
    merge(args, &mut draft.config, &mut origins, &mut errors);
    if !errors.is_empty() {
        return Err(SpecInput::Options(errors));
    }
    Ok((draft, origins))
}

fn read(path: &Path) -> Result<Draft, SpecInput> {
    let parse = match path.extension().and_then(|extension| extension.to_str()) {
        _ if path == Path::new("-") => Draft::from_json,
        Some("json") => Draft::from_json,
        Some("toml") => Draft::from_toml,
        _ => {
            return Err(SpecInput::File {
                path: path.to_owned(),
                detail: "the name of a spec file ends in .json or .toml",
            });
        }
    };
    let text = read_text(path)?;
    parse(&text).map_err(|source| SpecInput::Syntax {
        path: path.to_owned(),
        source,
    })
}

/// The text of a spec file, or of standard input if the path is `-`.
///
/// # Errors
/// When it cannot be read, is no text, or is larger than 1 MiB.
pub fn read_text(path: &Path) -> Result<String, SpecInput> {
    let failed = |source| SpecInput::Read {
        path: path.to_owned(),
        source,
    };
    let wrong = |detail| SpecInput::File {
        path: path.to_owned(),
        detail,
    };
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(MAX_FILE + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
    }
    .map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE) {
        return Err(wrong("it is larger than 1 MiB, which no spec file is"));
    }
    String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8 text"))
}

/// Puts the flags into the spec.
fn merge(
    args: &SpecArgs,
    config: &mut VmConfig,
    origins: &mut Origins,
    errors: &mut Vec<OptionError>,
) {
    let root = JsonPointer::root();
    if let Some(name) = &args.name {
        origins.flag(root.key("name"), "--name", name);
        config.name = Some(name.clone());
    }
    if let Some(uuid) = &args.uuid {
        origins.flag(root.key("uuid"), "--uuid", uuid);
        config.uuid = Some(uuid.clone());
    }
    merge_boot(args, config, origins);
    merge_smbios(args, config, origins);
    if let Some(text) = &args.cpus {
        origins.flag(root.key("cpus"), "--cpus", text);
        if let Some(cpus) = keep(flags::cpus(text), errors) {
            merge_cpus(config.cpus.get_or_insert_default(), cpus);
        }
    }
    if let Some(text) = &args.memory {
        origins.flag(root.key("memory"), "--memory", text);
        if let Some(memory) = keep(flags::memory(text), errors) {
            merge_memory(config.memory.get_or_insert_default(), &memory);
        }
    }
    if let Some(text) = &args.balloon {
        origins.flag(root.key("balloon"), flags::BALLOON.name, text);
        if let Some(balloon) = keep(flags::balloon(text), errors) {
            merge_balloon(config.balloon.get_or_insert_default(), &balloon);
        }
    }
    for text in &args.disk {
        let at = root.key("disks").index(config.disks.len());
        origins.flag(at, flags::DISK.name, text);
        config.disks.extend(keep(flags::disk(text), errors));
    }
    for text in &args.cdrom {
        let at = root.key("cdroms").index(config.cdroms.len());
        origins.flag(at, flags::CDROM.name, text);
        config.cdroms.extend(keep(flags::cdrom(text), errors));
    }
    for text in &args.net {
        let at = root.key("nics").index(config.nics.len());
        origins.flag(at, flags::NET.name, text);
        config.nics.extend(keep(flags::net(text), errors));
    }
    merge_console(args, config, origins, errors);
    if args.no_rng {
        config.rng = Some(false);
    }
    if let Some(on_reset) = args.on_reset {
        config.on_reset = Some(match on_reset {
            OnResetArg::Reboot => OnReset::Reboot,
            OnResetArg::Exit => OnReset::Exit,
        });
    }
}

/// What was parsed, or its errors added to the others.
fn keep<T>(parsed: Result<T, Vec<OptionError>>, errors: &mut Vec<OptionError>) -> Option<T> {
    parsed.map_err(|wrong| errors.extend(wrong)).ok()
}

fn merge_boot(args: &SpecArgs, config: &mut VmConfig, origins: &mut Origins) {
    let at = JsonPointer::root().key("boot");
    let mut boot = config.boot.take().unwrap_or_default();
    // The other way to boot, with what goes with it, is replaced as well.
    if args.firmware.is_some() {
        (boot.kernel, boot.initramfs, boot.command_line) = (None, None, None);
    } else if args.kernel.is_some() {
        boot.firmware = None;
        boot.order.clear();
    }
    let mut note = |key: &str, flag: &str, value: &str| origins.flag(at.key(key), flag, value);
    if let Some(kernel) = &args.kernel {
        note("kernel", "--kernel", &kernel.to_string_lossy());
        boot.kernel = Some(kernel.clone());
    }
    if let Some(initramfs) = &args.initramfs {
        note("initramfs", "--initramfs", &initramfs.to_string_lossy());
        boot.initramfs = Some(initramfs.clone());
    }
    if let Some(line) = &args.cmdline {
        note("command_line", "--cmdline", line);
        boot.command_line = Some(line.clone());
    }
    if !args.boot_order.is_empty() {
        note("order", "--boot-order", &args.boot_order.join(","));
        boot.order.clone_from(&args.boot_order);
    }
    merge_firmware(args, &mut boot.firmware, origins);
    config.boot = (boot != BootConfig::default()).then_some(boot);
}

fn merge_firmware(args: &SpecArgs, config: &mut Option<FirmwareConfig>, origins: &mut Origins) {
    let at = JsonPointer::root().key("boot").key("firmware");
    if let Some(path) = &args.firmware {
        // The flag alone means the host's.
        let path = Some(path).filter(|path| !path.is_empty());
        match path {
            Some(path) => origins.flag(at.clone(), "--firmware", path),
            None => origins.flags.push((at.clone(), "--firmware".to_owned())),
        }
        config.get_or_insert_default().path = path.map(PathBuf::from);
    }
    let files = [
        ("variables", "--variables", &args.variables),
        ("template", "--variables-template", &args.variables_template),
    ];
    for (key, flag, path) in files {
        let Some(path) = path else {
            continue;
        };
        let text = path.to_string_lossy();
        if config.is_none() {
            origins.flag(at.clone(), flag, &text);
        }
        origins.flag(at.key(key), flag, &text);
        let config = config.get_or_insert_default();
        let place = match key {
            "variables" => &mut config.variables,
            _ => &mut config.template,
        };
        *place = Some(path.clone());
    }
}

fn merge_smbios(args: &SpecArgs, config: &mut VmConfig, origins: &mut Origins) {
    let at = JsonPointer::root().key("smbios");
    let mut first = true;
    let mut note = |key: JsonPointer, flag: &str, value: &str| {
        // That there is any of it may be wrong as well.
        if std::mem::take(&mut first) {
            origins.flag(at.clone(), flag, value);
        }
        origins.flag(key, flag, value);
    };
    let mut smbios = config.smbios.take().unwrap_or_default();
    if let Some(serial) = &args.system_serial {
        note(at.key("serial"), "--system-serial", serial);
        smbios.serial = Some(serial.clone());
    }
    if let Some(tag) = &args.asset_tag {
        note(at.key("asset_tag"), "--asset-tag", tag);
        smbios.asset_tag = Some(tag.clone());
    }
    for text in &args.oem_string {
        let at = at.key("oem_strings").index(smbios.oem_strings.len());
        note(at, "--oem-string", text);
        smbios.oem_strings.push(text.clone());
    }
    config.smbios = (smbios != SmbiosConfig::default()).then_some(smbios);
}

fn merge_cpus(config: &mut CpuConfig, flag: CpuConfig) {
    // A new count with the old arrangement, or the other way round, would contradict itself.
    let count = flag.count.is_some();
    match flag.topology {
        Some(new) => {
            let old = config.topology.get_or_insert_default();
            *old = TopologyConfig {
                sockets: new.sockets.or(old.sockets),
                cores: new.cores.or(old.cores),
                threads: new.threads.or(old.threads),
            };
            config.count = flag.count;
            config.max = flag.max;
        }
        None => {
            // It is that of all that there may be.
            if flag.max.is_some() || count && config.max.is_none() {
                config.topology = None;
            }
            config.count = flag.count.or(config.count);
            config.max = flag.max.or(config.max);
        }
    }
    config.nested = flag.nested.or(config.nested);
}

fn merge_memory(config: &mut MemoryConfig, flag: &MemoryConfig) {
    config.size = flag.size.or(config.size);
    config.max = flag.max.or(config.max);
    config.shared = flag.shared.or(config.shared);
    config.hugepages = flag.hugepages.or(config.hugepages);
}

fn merge_balloon(config: &mut BalloonConfig, flag: &BalloonConfig) {
    config.size = flag.size.or(config.size);
    config.deflate_on_oom = flag.deflate_on_oom.or(config.deflate_on_oom);
    config.free_page_reporting = flag.free_page_reporting.or(config.free_page_reporting);
}

fn merge_console(
    args: &SpecArgs,
    config: &mut VmConfig,
    origins: &mut Origins,
    errors: &mut Vec<OptionError>,
) {
    let at = JsonPointer::root().key("console");
    let mut console = config.console.take().unwrap_or_default();
    let [serial, hvc0] = [
        (flags::SERIAL, &args.serial, "serial"),
        (flags::HVC0, &args.hvc0, "hvc0"),
    ]
    .map(|(flag, text, key)| {
        let text = text.as_ref()?;
        let read = keep(flags::console(flag, text), errors)?;
        if read.target.is_some() {
            origins.flag(at.key(key), flag.name, text);
        }
        if read.log.is_some() {
            origins.flag(at.key(&format!("{key}_log")), flag.name, text);
        }
        Some(read)
    });
    if let Some(flag) = serial {
        console.serial = flag.target.or(console.serial);
        merge_log(&mut console.serial_log, flag.log);
    }
    if let Some(flag) = hvc0 {
        console.hvc0 = flag.target.or(console.hvc0);
        merge_log(&mut console.hvc0_log, flag.log);
    }
    for text in &args.port {
        let at = at.key("ports").index(console.ports.len());
        origins.flag(at, flags::PORT.name, text);
        console.ports.extend(keep(flags::port(text), errors));
    }
    config.console = Some(console);
}

fn merge_log(config: &mut Option<ConsoleLogConfig>, flag: Option<ConsoleLogConfig>) {
    if let Some(flag) = flag {
        let config = config.get_or_insert_default();
        config.path = flag.path.or(config.path.take());
        config.size = flag.size.or(config.size);
        config.files = flag.files.or(config.files);
    }
}

/// A kernel without a command line prints to the console that has the terminal, else to one that is somewhere.
fn default_command_line(config: &mut VmConfig) {
    use ConsoleTarget::{Off, Terminal};
    let console = config.console.clone().unwrap_or_default();
    let hvc0_has_terminal = console.hvc0 == Some(Terminal);
    let has_hvc0 = console.hvc0.is_some_and(|hvc0| hvc0 != Off) || console.hvc0_log.is_some();
    let has_serial = console.serial != Some(Off) || console.serial_log.is_some();
    let line = match (has_serial, has_hvc0) {
        _ if hvc0_has_terminal => "console=hvc0",
        (true, _) => "console=ttyS0",
        (false, true) => "console=hvc0",
        (false, false) => "",
    };
    if let Some(boot) = config.boot.as_mut().filter(|boot| boot.firmware.is_none()) {
        boot.command_line.get_or_insert_with(|| line.to_owned());
    }
}

#[cfg(test)]
mod tests;
