//! The processors in the DSDT, by `_UID`, which the MADT ties to APIC ids. Where they can come and go: methods that ask the hot-plug
//! registers (`paddock_devices::cpu_hotplug`) for them, and tell the registers what becomes of them.
//!
//! ```text
//! \_GPE ── _E01  calls CPLG
//! \_SB.CPUS  ACPI0010 ── C000, C001, …  ACPI0007  _UID _STA _MAT _EJ0 _OST
//!                     ├─ CPLG  asks which have news, acknowledges and notifies: 1 (look again), 3 (let go)
//!                     ├─ CPTL  notifies one
//!                     ├─ CPEN, CPEJ, CPOS  what _STA, _EJ0 and _OST have in common
//!                     └─ CPRG  the registers, one CPU at a time: CPMX is held meanwhile
//! ```

use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, And, Arg, BufferData, Device, EISAName, Equal, If, Local, Method, MethodCall, Mutex,
    Notify, Path, Release, Return, Store, While, ZERO,
};
use paddock_devices::cpu_hotplug as registers;

use super::aml::{ALL_WELL, Raw, method, name};
use super::fixed::local_apic;
use super::hotplug::{DEVICE_CHECK, EJECT_REQUEST, registers as hot_plug_registers};
use crate::layout;

/// For as long as it takes: whoever holds the mutex does nothing but accesses of registers.
const NO_TIMEOUT: u16 = 0xFFFF;

const REGION: &str = "CPRG";
const MUTEX: &str = "CPMX";
const SELECT: &str = "CPSL";
const STATUS: &str = "CPST";
const NEXT: &str = "CPNX";
const ANSWER: &str = "CPAN";
const STATE_OF: &str = "CPEN";
const EJECT: &str = "CPEJ";
const OUTCOME: &str = "CPOS";
const TELL: &str = "CPTL";
const LOOK: &str = "CPLG";

/// Where the event finds what to call.
pub(super) const LOOK_PATH: &str = "\\_SB_.CPUS.CPLG";

// The field below has them in this order, 32 bits each.
const _: () = assert!(
    registers::SELECT == 0
        && registers::STATUS == 4
        && registers::NEXT == 8
        && registers::ANSWER == 12
);

/// A processor for each APIC id. With `hot_plug` they can come and go.
pub(super) fn processors(apic_ids: &[u32], hot_plug: bool) -> Raw {
    let mut children = vec![
        Raw::new(&name("_HID", &"ACPI0010")),
        Raw::new(&name("_CID", &EISAName::new("PNP0A05"))),
    ];
    if hot_plug {
        children.extend(access());
    }
    let ids = (0u32..).zip(apic_ids);
    children.extend(ids.map(|(uid, apic_id)| processor(uid, *apic_id, hot_plug)));
    if hot_plug {
        children.push(tell(apic_ids.len()));
        children.push(look());
    }
    let children = children.iter().map(|child| child as _).collect();
    Raw::new(&Device::new("CPUS".into(), children))
}

fn processor_name(uid: u32) -> String {
    format!("C{uid:03X}")
}

fn processor(uid: u32, apic_id: u32, hot_plug: bool) -> Raw {
    let path = processor_name(uid);
    let (hid, name_of_it) = (name("_HID", &"ACPI0007"), name("_UID", &uid));
    let mut parts: Vec<&dyn Aml> = vec![&hid, &name_of_it];
    let always = name("_STA", &ALL_WELL);
    if !hot_plug {
        parts.push(&always);
        return Raw::new(&Device::new(path.as_str().into(), parts));
    }
    let (state_of, eject, outcome) = (Path::new(STATE_OF), Path::new(EJECT), Path::new(OUTCOME));
    let ask = MethodCall::new(state_of, vec![&uid]);
    let ask = Return::new(&ask);
    let state = Method::new("_STA".into(), 0, true, vec![&ask]);
    // As the MADT would have it if the processor were there from the start: asked for only when it is.
    let entry = BufferData::new(local_apic(uid, apic_id, true));
    let entry = name("_MAT", &entry);
    let let_go = MethodCall::new(eject, vec![&uid]);
    let let_go = Method::new("_EJ0".into(), 1, true, vec![&let_go]);
    let (source, code) = (Arg(0), Arg(1));
    let told = MethodCall::new(outcome, vec![&uid, &source, &code]);
    let told = Method::new("_OST".into(), 3, true, vec![&told]);
    parts.extend([&state as &dyn Aml, &entry]);
    // The first is never asked for.
    if uid > 0 {
        parts.extend([&let_go as &dyn Aml, &told]);
    }
    Raw::new(&Device::new(path.as_str().into(), parts))
}

/// The registers, and the methods by which processors get at them.
fn access() -> Vec<Raw> {
    let names = [SELECT, STATUS, NEXT, ANSWER];
    let mut all = Vec::from(hot_plug_registers(
        REGION,
        &layout::CPU_HOT_PLUG_PORTS,
        &names,
    ));
    let (select, status, answer) = (Path::new(SELECT), Path::new(STATUS), Path::new(ANSWER));
    let (present, ejected) = (registers::PRESENT, registers::EJECT);
    let chosen = Store::new(&select, &Arg(0));
    let is_there = And::new(&ZERO, &Local(0), &present);
    let mut state = guarded(vec![&chosen, &Store::new(&Local(0), &status)]);
    state.push(Raw::new(&If::new(&is_there, vec![&Return::new(&ALL_WELL)])));
    state.push(Raw::new(&Return::new(&ZERO)));
    let eject = guarded(vec![&chosen, &Store::new(&status, &ejected)]);
    let answered = guarded(vec![&chosen, &Store::new(&answer, &Arg(2))]);
    let answered: Vec<&dyn Aml> = answered.iter().map(|step| step as _).collect();
    // What is told of other events is not asked for.
    let of_ejection = Equal::new(&Arg(1), &EJECT_REQUEST);
    let outcome = vec![Raw::new(&If::new(&of_ejection, answered))];
    all.extend([
        Raw::new(&Mutex::new(MUTEX.into(), 0)),
        method(STATE_OF, 1, &state),
        method(EJECT, 1, &eject),
        method(OUTCOME, 3, &outcome),
    ]);
    all
}

/// Steps with the mutex held, so that the CPU that they select stays selected.
fn guarded(steps: Vec<&dyn Aml>) -> Vec<Raw> {
    let mut all = vec![Raw::new(&Acquire::new(MUTEX.into(), NO_TIMEOUT))];
    all.extend(steps.into_iter().map(Raw::new));
    all.push(Raw::new(&Release::new(MUTEX.into())));
    all
}

/// Notifies the processor of its first argument of its second.
fn tell(processors: usize) -> Raw {
    let cases: Vec<_> = (0u32..)
        .take(processors)
        .map(|uid| {
            let device = Path::new(&processor_name(uid));
            Raw::new(&If::new(
                &Equal::new(&Arg(0), &uid),
                vec![&Notify::new(&device, &Arg(1))],
            ))
        })
        .collect();
    method(TELL, 2, &cases)
}

/// Acknowledged first and acted on then, so that what changes meanwhile raises the event again.
fn look() -> Raw {
    let (select, status, next) = (Path::new(SELECT), Path::new(STATUS), Path::new(NEXT));
    let (cpu, news) = (Local(0), Local(1));
    let (added, wanted) = (registers::ADDED, registers::WANTED);
    let acknowledged = added | wanted;
    let find = guarded(vec![
        &Store::new(&cpu, &next),
        &Store::new(&select, &cpu),
        &Store::new(&news, &status),
        &And::new(&status, &news, &acknowledged),
    ]);
    let mut steps = vec![Raw::new(&Store::new(&news, &acknowledged))];
    let mut round = find;
    for (bit, value) in [(added, DEVICE_CHECK), (wanted, EJECT_REQUEST)] {
        let tell = MethodCall::new(Path::new(TELL), vec![&cpu, &value]);
        let is_set = And::new(&ZERO, &news, &bit);
        round.push(Raw::new(&If::new(&is_set, vec![&tell])));
    }
    // A number that no CPU has selects nothing, which has no news.
    let more = And::new(&ZERO, &news, &acknowledged);
    let round = round.iter().map(|step| step as _).collect();
    steps.push(Raw::new(&While::new(&more, round)));
    method(LOOK, 0, &steps)
}
