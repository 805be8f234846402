//! Device files: who may open them, and how to be among those.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::host::{Host, Identity, gid_of, name_of};
use super::report::Fix;

/// Whose a device file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The permission bits.
    pub mode: u32,
}

impl Owner {
    /// Looks at a file, if it is there.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode() & 0o777,
        })
    }

    /// Whether the file's mode lets this process read and write.
    fn lets(self, who: &Identity) -> bool {
        let bits = if who.uid == 0 {
            return true;
        } else if who.uid == self.uid {
            self.mode >> 6
        } else if who.groups.contains(&self.gid) {
            self.mode >> 3
        } else {
            self.mode
        };
        bits & 0o6 == 0o6
    }
}

/// Says who is refused: "uid 1000 (joe); the device is root:kvm, mode 0660".
#[must_use]
pub fn describe(host: &Host, owner: Option<Owner>, who: &Identity) -> String {
    let user = who.name(host);
    let me = if user == who.uid.to_string() {
        format!("uid {}", who.uid)
    } else {
        format!("{user} (uid {})", who.uid)
    };
    match owner {
        None => format!("this is {me}"),
        Some(owner) => format!(
            "this is {me}, the device belongs to {}:{}, mode {:04o}",
            name_of(host, "/etc/passwd", owner.uid),
            name_of(host, "/etc/group", owner.gid),
            owner.mode
        ),
    }
}

/// How to be let in to a device file that refused us.
#[must_use]
pub fn fix(host: &Host, device: &str, owner: Option<Owner>, who: &Identity) -> Fix {
    let Some(owner) = owner.filter(|owner| !owner.lets(who)) else {
        return pass_in(device);
    };
    let name = device.rsplit('/').next().unwrap_or(device);
    let rule = |rule: &str| {
        format!("echo 'KERNEL==\"{name}\", {rule}' > /etc/udev/rules.d/65-paddock-{name}.rules")
    };
    if name == "tun" {
        // Its rights say nothing about whose taps one may use: the kernel checks that for each.
        return Fix::commands(
            "As root, open the device to all, as distributions do; taps have owners of their own:",
            ["chmod 0666 /dev/net/tun".to_owned(), rule("MODE=\"0666\"")],
        );
    }
    if owner.gid != 0 && owner.mode & 0o060 == 0o060 {
        let group = name_of(host, "/etc/group", owner.gid);
        let (text, join) = join(host, &group, owner.gid, who);
        return Fix::commands(format!("As root, {text}"), join);
    }
    let gid = gid_of(host, "kvm");
    let (text, join) = join(host, "kvm", gid.unwrap_or(0), who);
    let mut commands = Vec::new();
    if gid.is_none() {
        commands.push("groupadd --system kvm".to_owned());
    }
    commands.push(rule("GROUP=\"kvm\", MODE=\"0660\""));
    commands.push(format!("chgrp kvm {device} && chmod 0660 {device}"));
    commands.extend(join);
    Fix::commands(
        format!("As root, give the device to the group kvm, and {text}"),
        commands,
    )
}

/// The mode lets us in, so something else does not.
fn pass_in(device: &str) -> Fix {
    Fix::commands(
        format!(
            "The file's mode lets this process in, so a container's device rules or a security module do not. Let the container have \
             {device} (Kubernetes: by a device plugin, such as KubeVirt's):"
        ),
        [
            format!("docker run --device {device} ..."),
            format!("DeviceAllow={device} rw    # in a systemd unit"),
        ],
    )
}

/// How this user gets a group. A number without a name, as containers have, cannot be put into one.
fn join(host: &Host, group: &str, gid: u32, who: &Identity) -> (&'static str, Vec<String>) {
    let user = who.name(host);
    if user == who.uid.to_string() {
        (
            "start Paddock with that group:",
            vec![
                format!("SupplementaryGroups={group}    # in a systemd unit"),
                format!("docker run --group-add {gid} ..."),
                format!("securityContext: {{supplementalGroups: [{gid}]}}    # Kubernetes"),
            ],
        )
    } else {
        (
            "put this user into its group; that counts from the next login on:",
            vec![format!("usermod -aG {group} {user}")],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::testing::FakeHost;

    const JOE: u32 = 1000;

    fn host() -> FakeHost {
        FakeHost::new(&[
            ("etc/passwd", "root:x:0:0::/:\njoe:x:1000:1000::/:\n"),
            ("etc/group", "root:x:0:\nkvm:x:106:\n"),
        ])
    }

    fn user(uid: u32) -> Identity {
        Identity {
            uid,
            groups: vec![uid],
            capabilities: 0,
        }
    }

    fn device(gid: u32, mode: u32) -> Option<Owner> {
        Some(Owner { uid: 0, gid, mode })
    }

    #[test]
    fn a_group_to_join() {
        let fake = host();
        let commands = |owner, uid| fix(&fake.host(), "/dev/kvm", owner, &user(uid)).commands;
        assert_eq!(commands(device(106, 0o660), JOE), ["usermod -aG kvm joe"]);
        let nameless = commands(device(106, 0o660), 4711);
        assert!(
            nameless.contains(&"docker run --group-add 106 ...".to_owned()),
            "{nameless:?}"
        );
    }

    #[test]
    fn a_device_of_roots_alone() {
        let fake = host();
        let commands = fix(&fake.host(), "/dev/kvm", device(0, 0o600), &user(JOE)).commands;
        assert_eq!(
            commands,
            [
                "echo 'KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"' > /etc/udev/rules.d/65-paddock-kvm.rules",
                "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm",
                "usermod -aG kvm joe",
            ]
        );
        fake.write("etc/group", "root:x:0:\n");
        let commands = fix(&fake.host(), "/dev/kvm", device(0, 0o600), &user(JOE)).commands;
        assert_eq!(commands[0], "groupadd --system kvm");
    }

    #[test]
    fn something_other_than_the_mode() {
        let fake = host();
        for owner in [None, device(0, 0o666)] {
            let fix = fix(&fake.host(), "/dev/kvm", owner, &user(JOE));
            assert_eq!(fix.commands[0], "docker run --device /dev/kvm ...");
        }
    }

    #[test]
    fn taps_for_all() {
        let fake = host();
        let fix = fix(&fake.host(), "/dev/net/tun", device(0, 0o600), &user(JOE));
        assert_eq!(fix.commands[0], "chmod 0666 /dev/net/tun");
    }

    #[test]
    fn what_the_mode_says() {
        let mut joe = user(JOE);
        assert!(
            !Owner {
                uid: 0,
                gid: 106,
                mode: 0o660
            }
            .lets(&joe)
        );
        assert!(
            Owner {
                uid: 0,
                gid: 106,
                mode: 0o666
            }
            .lets(&joe)
        );
        assert!(
            Owner {
                uid: JOE,
                gid: 106,
                mode: 0o600
            }
            .lets(&joe)
        );
        joe.groups.push(106);
        assert!(
            Owner {
                uid: 0,
                gid: 106,
                mode: 0o660
            }
            .lets(&joe)
        );
        // The group's bits count for its members, though others have more.
        assert!(
            !Owner {
                uid: 0,
                gid: 106,
                mode: 0o606
            }
            .lets(&joe)
        );
        assert!(
            Owner {
                uid: 0,
                gid: 0,
                mode: 0
            }
            .lets(&user(0))
        );
    }
}
