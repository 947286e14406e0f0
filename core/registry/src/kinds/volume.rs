//! The rules of volumes, in upstream's order.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use knarr_api::quantity::Quantity;
use knarr_api::{Cause, names};

use super::container;
use super::part::Part;
use super::words;

/// The sources a volume may have, in the order in which the first one counts.
const SOURCES: &str = "emptyDir hostPath gitRepo gcePersistentDisk awsElasticBlockStore secret nfs \
iscsi glusterfs persistentVolumeClaim rbd cinder cephfs flocker downwardAPI fc flexVolume \
configMap azureFile vsphereVolume quobyte photonPersistentDisk portworxVolume scaleIO azureDisk \
storageos projected csi ephemeral image";

/// The names of the volumes that nothing is wrong with.
pub(super) fn all<'v>(list: &Part<'v>, out: &mut Vec<Cause>) -> BTreeSet<&'v str> {
    let mut right = BTreeSet::new();
    for volume in list.items() {
        let before = out.len();
        source(&volume, out);
        let name = volume.get("name");
        name.must_follow(names::dns1123_label, out);
        if right.contains(name.text()) {
            name.duplicate(name.value, out);
        }
        if out.len() == before {
            right.insert(name.text());
        }
    }
    right
}

fn source(volume: &Part<'_>, out: &mut Vec<Cause>) {
    let sources = SOURCES.split(' ').map(|name| (name, volume.get(name)));
    let mut set = sources.filter(|(_, part)| part.is_set());
    match set.next() {
        None => volume.required("must specify a volume type", out),
        Some(("emptyDir", part)) => {
            let limit = part.get("sizeLimit").text().parse::<Quantity>();
            if limit.is_ok_and(|limit| limit < Quantity::default()) {
                let why = "SizeLimit field must be a valid resource quantity";
                part.get("sizeLimit").forbidden(why, out);
            }
        }
        Some(("hostPath", part)) => host_path(&part, out),
        Some(("secret", part)) => files(&part, "secretName", out),
        Some(("configMap", part)) => files(&part, "name", out),
        Some(("downwardAPI", part)) => {
            words::file_mode(&part.get("defaultMode"), out);
            part.get("items").items().for_each(|item| downward(&item, &part, out));
        }
        Some(("projected", part)) => projected(&part, out),
        Some(("persistentVolumeClaim", part)) => drop(part.get("claimName").must_be(out)),
        Some(("nfs", part)) => {
            part.get("server").must_be(out);
            part.get("path").must_be(out);
            if !part.get("path").text().starts_with('/') {
                part.get("path").invalid("must be an absolute path", out);
            }
        }
        Some(_) => {}
    }
    set.for_each(|(_, part)| part.forbidden("may not specify more than 1 volume type", out));
}

fn host_path(part: &Part<'_>, out: &mut Vec<Cause>) {
    if !part.get("path").must_be(out) {
        return;
    }
    words::no_backsteps(&part.get("path"), out);
    let kinds = [
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    if !kinds.contains(&part.get("type").text()) {
        part.get("type").not_supported(&kinds, out);
    }
}

/// Keys of a ConfigMap or Secret as files.
fn files(part: &Part<'_>, name: &str, out: &mut Vec<Cause>) {
    part.get(name).must_be(out);
    words::file_mode(&part.get("defaultMode"), out);
    part.get("items").items().for_each(|item| key_to_path(&item, out));
}

fn key_to_path(item: &Part<'_>, out: &mut Vec<Cause>) {
    let path = item.get("path");
    item.get("key").must_be(out);
    path.must_be(out);
    local_name(&path, out);
    words::file_mode(&item.get("mode"), out);
}

/// A path inside a volume that is none of the volume's own.
fn local_name(path: &Part<'_>, out: &mut Vec<Cause>) {
    words::local_path(path, out);
    if path.text().starts_with("..") && !path.text().starts_with("../") {
        path.invalid("must not start with '..'", out);
    }
}

const FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// A file of the downward API; upstream names its source, not the item.
fn downward(item: &Part<'_>, source: &Part<'_>, out: &mut Vec<Cause>) {
    let item = item.shown_at(source.path());
    let path = item.get("path");
    path.must_be(out);
    local_name(&path, out);
    let (field, resource) = (item.get("fieldRef"), item.get("resourceFieldRef"));
    match (field.is_set(), resource.is_set()) {
        (true, both) => {
            container::field_ref(&field, &FIELDS, out);
            if both {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                item.invalid_as(&"resource".into(), why, out);
            }
        }
        (false, true) => resource_ref(&resource, out),
        (false, false) => item.required("one of fieldRef and resourceFieldRef is required", out),
    }
    words::file_mode(&item.get("mode"), out);
}

fn resource_ref(part: &Part<'_>, out: &mut Vec<Cause>) {
    let name = part.get("resource");
    let huge = ["limits.hugepages-", "requests.hugepages-"];
    if part.get("containerName").must_be(out)
        && name.must_be(out)
        && !huge.iter().any(|prefix| name.text().starts_with(prefix))
    {
        name.one_of(&RESOURCES, out);
    }
}

/// Several sources in one volume, none of them at the same place.
fn projected(part: &Part<'_>, out: &mut Vec<Cause>) {
    words::file_mode(&part.get("defaultMode"), out);
    let mut taken = BTreeSet::new();
    for source in part.get("sources").items() {
        projection(&source, part, &mut taken, out);
        let kinds = source
            .value
            .as_object()
            .map_or(0, |kinds| kinds.values().filter(|kind| !kind.is_null()).count());
        if kinds > 1 {
            source.forbidden("may not specify more than 1 volume type per source", out);
        }
    }
}

fn projection<'v>(
    source: &Part<'v>,
    whole: &Part<'_>,
    taken: &mut BTreeSet<&'v str>,
    out: &mut Vec<Cause>,
) {
    for kind in ["secret", "configMap", "downwardAPI"] {
        let part = source.get(kind);
        let named = kind != "downwardAPI";
        if part.is_set() && named {
            part.get("name").must_be(out);
        }
        for item in part.get("items").items() {
            if named {
                key_to_path(&item, out);
            } else {
                downward(&item, &part, out);
            }
            let path = item.get("path").text();
            if !path.is_empty() && !taken.insert(path) {
                let shown = if named { part.get("name").text() } else { path };
                whole.invalid_as(&shown.into(), "conflicting duplicate paths", out);
            }
        }
    }
    let token = source.get("serviceAccountToken");
    if token.is_set() {
        let seconds = token.get("expirationSeconds");
        match seconds.int() {
            Some(..600) => seconds.invalid("may not specify a duration less than 10 minutes", out),
            Some(4_294_967_297..) => {
                seconds.invalid("may not specify a duration larger than 2^32 seconds", out);
            }
            _ => {}
        }
        let path = token.get("path").shown_at(whole.get("path").path());
        if path.must_be(out) {
            local_name(&path, out);
        }
    }
}
