//! Limits of the control group, version 2 and version 1.
//!
//! A process is in a group for each hierarchy (`/proc/self/cgroup`), a hierarchy is mounted somewhere
//! (`/proc/self/mountinfo`), and a limit of any group above counts as well: so the groups are walked from the
//! process's own up to the root of the mount, and the least limit wins. A container often sees its group's name
//! without seeing the folder; then what is left is the root of the mount, and that is its own group.

use super::Fact;

/// Cores that the CPU quota allows, rounded up; `None` without a quota.
pub(super) fn cpu_quota(read: &dyn Fn(&str) -> Option<String>) -> Option<Fact<u32>> {
    least(read, "cpu", |folder, version| match version {
        Version::Two => {
            let source = format!("{folder}/cpu.max");
            Some(Fact { value: quota_v2(&read(&source)?)?, source })
        }
        Version::One => {
            let source = format!("{folder}/cpu.cfs_quota_us");
            let period = read(&format!("{folder}/cpu.cfs_period_us"))?;
            Some(Fact { value: quota_v1(&read(&source)?, &period)?, source })
        }
    })
}

/// Bytes that the group may use; `None` without a limit.
pub(super) fn memory_limit(read: &dyn Fn(&str) -> Option<String>) -> Option<Fact<u64>> {
    least(read, "memory", |folder, version| {
        let source = match version {
            Version::Two => format!("{folder}/memory.max"),
            Version::One => format!("{folder}/memory.limit_in_bytes"),
        };
        Some(Fact { value: bytes(&read(&source)?)?, source })
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The least limit that `limit` finds in any folder of the controller.
fn least<T: Ord>(
    read: &dyn Fn(&str) -> Option<String>,
    controller: &str,
    limit: impl Fn(&str, Version) -> Option<Fact<T>>,
) -> Option<Fact<T>> {
    let groups = read("/proc/self/cgroup")?;
    let mounts = read("/proc/self/mountinfo")?;
    folders(&groups, &mounts, controller)
        .iter()
        .filter_map(|(folder, version)| limit(folder, *version))
        .min_by(|a, b| a.value.cmp(&b.value))
}

/// Folders that may hold limits of the controller: the process's own group first, then those above.
fn folders(groups: &str, mountinfo: &str, controller: &str) -> Vec<(String, Version)> {
    let mut folders = Vec::new();
    for mount in mountinfo.lines().filter_map(|line| mount(line, controller)) {
        let Some(path) = groups.lines().find_map(|line| group(line, controller, mount.version))
        else {
            continue;
        };
        // A mount may show a part of the hierarchy only; its root is then the part's top.
        let below = if mount.root == "/" {
            path
        } else {
            match path.strip_prefix(mount.root.as_str()) {
                Some(below) if below.is_empty() || below.starts_with('/') => below,
                // The group lies outside of what is mounted here, so the top is all that can be seen.
                _ => "",
            }
        };
        let mut below = below.trim_matches('/');
        // `..` stands for a group outside of the namespace.
        if below.split('/').any(|part| part == "..") {
            below = "";
        }
        let point = mount.point.trim_end_matches('/');
        while !below.is_empty() {
            folders.push((format!("{point}/{below}"), mount.version));
            below = below.rfind('/').map_or("", |at| &below[..at]);
        }
        folders.push((point.to_owned(), mount.version));
    }
    folders
}

struct Mount {
    version: Version,
    root: String,
    point: String,
}

/// A line of `mountinfo`, if it mounts the hierarchy of the controller.
fn mount(line: &str, controller: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let version = match right.next()? {
        "cgroup2" => Version::Two,
        "cgroup" if right.nth(1)?.split(',').any(|option| option == controller) => Version::One,
        _ => return None,
    };
    let mut left = left.split(' ').skip(3);
    Some(Mount { version, root: unescape(left.next()?), point: unescape(left.next()?) })
}

/// The group's path out of a line of `/proc/self/cgroup`, if the line is of that hierarchy.
fn group<'a>(line: &'a str, controller: &str, version: Version) -> Option<&'a str> {
    let mut parts = line.splitn(3, ':');
    let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let matches = match version {
        Version::Two => number == "0" && controllers.is_empty(),
        Version::One => controllers.split(',').any(|name| name == controller),
    };
    matches.then_some(path)
}

/// `mountinfo` writes blanks and backslashes in octal.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// `cpu.max`: quota and period in microseconds, or `max`.
fn quota_v2(text: &str) -> Option<u32> {
    let (quota, period) = text.trim().split_once(' ')?;
    quota_v1(quota, period)
}

/// `cpu.cfs_quota_us` (-1 for none) and `cpu.cfs_period_us`.
fn quota_v1(quota: &str, period: &str) -> Option<u32> {
    let quota: u64 = quota.trim().parse().ok()?;
    let period: u64 = period.trim().parse().ok().filter(|&period| period > 0)?;
    u32::try_from(quota.div_ceil(period).max(1)).ok()
}

/// A number of bytes; `None` for `max` and for version 1's way to say it, a number beyond any machine.
fn bytes(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&bytes: &u64| bytes > 0 && bytes < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas() {
        let cases = [
            ("max 100000\n", None),
            ("100000 100000\n", Some(1)),
            ("150000 100000", Some(2)),
            ("10000 100000", Some(1)),
            ("800000 100000", Some(8)),
            ("100000 0", None),
            ("100000", None),
            ("", None),
            ("-1 100000", None),
            ("99999999999999999999999 1", None),
        ];
        for (text, cores) in cases {
            assert_eq!(quota_v2(text), cores, "{text:?}");
        }
        assert_eq!(quota_v1("-1\n", "100000\n"), None);
        assert_eq!(quota_v1("250000\n", "100000\n"), Some(3));
    }

    #[test]
    fn byte_limits() {
        let cases = [
            ("max\n", None),
            ("1073741824\n", Some(1 << 30)),
            ("9223372036854771712\n", None),
            ("0", None),
            ("many", None),
        ];
        for (text, limit) in cases {
            assert_eq!(bytes(text), limit, "{text:?}");
        }
    }

    const V1_MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn names(groups: &str, mounts: &str, controller: &str) -> Vec<String> {
        folders(groups, mounts, controller).into_iter().map(|(folder, _)| folder).collect()
    }

    #[test]
    fn version_2_walks_up() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            names("0::/system.slice/balm.service\n", mounts, "cpu"),
            [
                "/sys/fs/cgroup/system.slice/balm.service",
                "/sys/fs/cgroup/system.slice",
                "/sys/fs/cgroup"
            ]
        );
        assert_eq!(names("0::/\n", mounts, "memory"), ["/sys/fs/cgroup"]);
        assert_eq!(names("0::/../other\n", mounts, "memory"), ["/sys/fs/cgroup"]);
    }

    #[test]
    fn version_1_and_both() {
        let groups = "4:memory:/docker/abc\n2:cpu,cpuacct:/\n0::/\n";
        assert_eq!(
            names(groups, V1_MOUNTS, "memory"),
            [
                "/sys/fs/cgroup/memory/docker/abc",
                "/sys/fs/cgroup/memory/docker",
                "/sys/fs/cgroup/memory",
                "/sys/fs/cgroup/unified"
            ]
        );
        assert_eq!(
            names(groups, V1_MOUNTS, "cpu"),
            ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"]
        );
        // A group of another hierarchy that has the name as a part of its own is not taken for it.
        assert_eq!(names("2:cpuset:/x\n", V1_MOUNTS, "cpu"), [""; 0]);
    }

    #[test]
    fn a_container_that_sees_its_own_part_only() {
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        assert_eq!(names("4:memory:/docker/abc\n", mounts, "memory"), ["/sys/fs/cgroup/memory"]);
        assert_eq!(
            names("4:memory:/docker/abc/sub\n", mounts, "memory"),
            ["/sys/fs/cgroup/memory/sub", "/sys/fs/cgroup/memory"]
        );
        assert_eq!(names("4:memory:/docker/abcd\n", mounts, "memory"), ["/sys/fs/cgroup/memory"]);
    }

    #[test]
    fn the_least_limit_on_the_way_up_wins() {
        let read = |path: &str| {
            let text = match path {
                "/proc/self/cgroup" => "0::/a/b\n",
                "/proc/self/mountinfo" => "30 23 0:26 / /cg\\040x rw - cgroup2 c rw\n",
                "/cg x/a/b/memory.max" => "max\n",
                "/cg x/a/memory.max" => "1000\n",
                "/cg x/memory.max" => "2000\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let limit = memory_limit(&read).unwrap();
        assert_eq!((limit.value, limit.source.as_str()), (1000, "/cg x/a/memory.max"));
        assert_eq!(cpu_quota(&read), None);
    }
}
