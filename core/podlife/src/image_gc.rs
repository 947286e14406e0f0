//! Which images go when the disk fills up: upstream's rules, as a function.
//!
//! Above the high threshold, images are removed down to the low one: the least recently used
//! first, none that a container uses or that is pinned, none that came a moment ago.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use jiff::{SignedDuration, Timestamp};
use knarr_oci::cri;
use serde_json::{Value, json};

/// When to collect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Used percent of the disk from which on images are removed.
    pub high_percent: u64,
    /// Used percent that is aimed at.
    pub low_percent: u64,
    /// How long an image has been known at least.
    pub min_age: SignedDuration,
}

impl Policy {
    /// Thresholds in percent of the disk, and the least age in seconds.
    #[must_use]
    pub fn new(high_percent: u64, low_percent: u64, min_age_seconds: i64) -> Policy {
        Policy { high_percent, low_percent, min_age: SignedDuration::from_secs(min_age_seconds) }
    }
}

impl Default for Policy {
    /// The kubelet's defaults.
    fn default() -> Policy {
        Policy { high_percent: 85, low_percent: 80, min_age: SignedDuration::from_mins(2) }
    }
}

/// An image that is here now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// Its id.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Whether a container uses it.
    pub used: bool,
    /// Whether it must never go.
    pub pinned: bool,
}

/// The disk that holds the images, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// All of it.
    pub capacity: u64,
    /// What is free.
    pub available: u64,
}

/// Images that a node reports.
const MAX_REPORTED: usize = 50;
/// Names that it reports of each.
const MAX_NAMES: usize = 5;

/// `status.images` of the node: the largest, each with its digests and tags.
#[must_use]
pub fn reported(mut images: Vec<cri::Image>) -> Value {
    images.sort_by(|one, other| (other.size, &one.id).cmp(&(one.size, &other.id)));
    let row = |image: cri::Image| {
        let names = image.repo_digests.into_iter().chain(image.repo_tags).take(MAX_NAMES);
        json!({"names": names.collect::<Vec<_>>(), "sizeBytes": image.size})
    };
    images.into_iter().take(MAX_REPORTED).map(row).collect()
}

#[derive(Clone, Copy, Debug)]
struct Record {
    detected: Timestamp,
    last_used: Timestamp,
}

/// When each image was first seen and last used. Soft state: lost, images are young again.
#[derive(Clone, Debug, Default)]
pub struct History(BTreeMap<String, Record>);

/// What is to be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Ids, in order.
    pub images: Vec<String>,
    /// Why that is not enough, for the node's events.
    pub shortage: Option<String>,
}

impl History {
    /// Takes note of what is here and used now.
    pub fn note(&mut self, images: &[Present], now: Timestamp) {
        let here: BTreeSet<&String> = images.iter().map(|image| &image.id).collect();
        self.0.retain(|id, _| here.contains(id));
        for image in images {
            let fresh = Record { detected: now, last_used: Timestamp::MIN };
            let record = self.0.entry(image.id.clone()).or_insert(fresh);
            if image.used {
                record.last_used = now;
            }
        }
    }

    /// Decides what goes. `images` were noted before.
    #[must_use]
    pub fn decide(
        &self,
        images: &[Present],
        disk: Disk,
        policy: Policy,
        now: Timestamp,
    ) -> Removal {
        let Disk { capacity, available } = disk;
        let available = available.min(capacity);
        let Some(free_percent) = (available.saturating_mul(100)).checked_div(capacity) else {
            let shortage = Some("invalid capacity 0 on image filesystem".into());
            return Removal { images: Vec::new(), shortage };
        };
        let used_percent = 100 - free_percent;
        if used_percent < policy.high_percent {
            return Removal::default();
        }
        let wanted = (capacity / 100 * (100 - policy.low_percent)).saturating_sub(available);
        let (images, freed) = self.oldest(images, wanted, policy.min_age, now);
        let shortage = (freed < wanted).then(|| shortage(used_percent, capacity, freed));
        Removal { images, shortage }
    }

    /// The least recently used images that make up `wanted` bytes, and the bytes they make up.
    fn oldest(
        &self,
        images: &[Present],
        wanted: u64,
        min_age: SignedDuration,
        now: Timestamp,
    ) -> (Vec<String>, u64) {
        let mut order: Vec<(Record, &Present)> =
            images.iter().filter_map(|image| Some((*self.0.get(&image.id)?, image))).collect();
        order.sort_by_key(|(record, image)| (record.last_used, record.detected, &image.id));
        let (mut chosen, mut freed) = (Vec::new(), 0_u64);
        for (record, image) in order {
            if freed >= wanted {
                break;
            }
            if !image.used && !image.pinned && now.duration_since(record.detected) >= min_age {
                chosen.push(image.id.clone());
                freed = freed.saturating_add(image.size);
            }
        }
        (chosen, freed)
    }
}

fn shortage(used_percent: u64, capacity: u64, freed: u64) -> String {
    format!(
        "Insufficient free disk space on the node's image filesystem ({used_percent}% of {} used). \
         Failed to free sufficient space by deleting unused images (freed {freed} bytes). \
         Investigate disk usage, as it could be used by active images, logs, volumes, or other \
         data.",
        in_units(capacity)
    )
}

/// Bytes with one digit after the point, in binary units.
fn in_units(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (0..units.len()).rev().find(|unit| bytes >> (10 * unit) > 0).unwrap_or(0);
    let tenths = (u128::from(bytes) * 10) >> (10 * unit);
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{}.{} {}", tenths / 10, tenths % 10, units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::borrow::ToOwned;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap_or_default()
    }

    fn image(id: &str, size: u64, used: bool) -> Present {
        Present { id: id.to_owned(), size, used, pinned: id == "pause" }
    }

    const FULL: Disk = Disk { capacity: 1000, available: 100 };

    /// a was used last at 10 s, b at 20 s, c never, d now; pause is pinned; young came at 990 s.
    fn world() -> (History, Vec<Present>) {
        let mut history = History::default();
        for (second, used) in [(0, ""), (10, "a"), (20, "b")] {
            let all = ["a", "b", "c", "d", "pause"];
            let all: Vec<_> = all.map(|id| image(id, 40, id == used)).into();
            history.note(&all, at(second));
        }
        let now: Vec<_> =
            ["a", "b", "c", "d", "pause", "young"].map(|id| image(id, 40, id == "d")).into();
        history.note(&now, at(990));
        (history, now)
    }

    #[test]
    fn below_the_high_threshold_nothing_goes() {
        let (history, images) = world();
        let disk = Disk { capacity: 1000, available: 160 };
        assert_eq!(history.decide(&images, disk, Policy::default(), at(1000)), Removal::default());
        let disk = Disk { capacity: 1000, available: 150 };
        let removal = history.decide(&images, disk, Policy::default(), at(1000));
        assert_eq!(removal.images, ["c", "a"], "50 bytes are wanted");
    }

    #[test]
    fn the_least_recently_used_go_first_and_never_the_used_pinned_or_young() {
        let (history, images) = world();
        let removal = history.decide(&images, FULL, Policy::default(), at(1000));
        assert_eq!(removal.images, ["c", "a", "b"]);
        assert_eq!(removal.shortage, None);
        let fuller = Disk { capacity: 1000, available: 0 };
        let removal = history.decide(&images, fuller, Policy::default(), at(1000));
        assert_eq!(removal.images, ["c", "a", "b"], "no more is to be had");
        let text = removal.shortage.unwrap_or_default();
        assert!(text.contains("(100% of 1000 B used)") && text.contains("(freed 120 bytes)"));
        let later = history.decide(&images, fuller, Policy::default(), at(1200));
        assert_eq!(later.images, ["c", "young", "a", "b"], "never used comes before used");
    }

    #[test]
    fn the_largest_images_are_reported_with_digests_before_tags() {
        let image = |size: u64| cri::Image {
            id: format!("{size}"),
            repo_tags: (0..4).map(|n| format!("t{n}")).collect(),
            repo_digests: ["d0".to_owned(), "d1".to_owned()].into(),
            size,
            ..cri::Image::default()
        };
        let told = reported((0..60).map(image).collect());
        let told = told.as_array().map(Vec::as_slice).unwrap_or_default();
        assert_eq!(told.len(), 50);
        assert_eq!(told[0]["names"], json!(["d0", "d1", "t0", "t1", "t2"]));
        assert_eq!((&told[0]["sizeBytes"], &told[49]["sizeBytes"]), (&json!(59), &json!(10)));
    }

    #[test]
    fn sizes_and_a_disk_without_any() {
        let (history, images) = world();
        let none = Disk { capacity: 0, available: 0 };
        let removal = history.decide(&images, none, Policy::default(), at(1000));
        assert!(removal.images.is_empty() && removal.shortage.is_some());
        assert_eq!(in_units(3 << 29), "1.5 GiB");
    }
}
