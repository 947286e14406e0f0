//! Keeps the disk from filling up with images: looks now and then, and removes what podlife says.

use std::sync::Arc;
use std::time::Duration;

use knarr_podlife::IMAGE_REF;
use knarr_podlife::image_gc::{Disk, History, Present};
use tracing::{info, warn};

use crate::agent::Node;
use crate::{now, report};

/// How often the disk is looked at; the kubelet's period.
const PERIOD: Duration = Duration::from_secs(300);

/// Collects images for as long as the node runs.
pub(crate) async fn collect(node: Arc<Node>) {
    let mut history = History::default();
    let mut failed_before = false;
    loop {
        let looked = node.blocking(move |node| {
            let outcome = round(node, &mut history);
            (history, outcome)
        });
        let outcome;
        (history, outcome) = looked.await;
        if let Err(error) = &outcome {
            warn!(error, "images could not be collected");
            // Once may be chance.
            if failed_before {
                report::node_event(&node, "ImageGCFailed", error);
            }
        }
        failed_before = outcome.is_err();
        tokio::time::sleep(PERIOD).await;
    }
}

fn round(node: &Node, history: &mut History) -> Result<(), String> {
    node.puller.forget_left().map_err(|error| error.to_string())?;
    let images = images(node).map_err(|error| error.to_string())?;
    history.note(&images, now());
    let here = images.iter().map(|image| image.id.as_str()).collect();
    node.access.retain(&here).map_err(|error| error.to_string())?;
    let disk = rustix::fs::statvfs(&node.config.state_dir).map_err(|error| error.to_string())?;
    let disk =
        Disk { capacity: disk.f_blocks * disk.f_frsize, available: disk.f_bavail * disk.f_frsize };
    let removal = history.decide(&images, disk, node.config.image_gc, now());
    for id in &removal.images {
        let in_use = node.runtime.layers_in_use();
        node.images.remove(id, &in_use).map_err(|error| error.to_string())?;
        info!(id, "image removed: the disk fills up");
    }
    if !removal.images.is_empty() {
        node.images_changed.notify_one();
    }
    match removal.shortage {
        Some(why) => {
            report::node_event(node, "FreeDiskSpaceFailed", &why);
            Err(why)
        }
        None => Ok(()),
    }
}

/// The images of the store, and which of them a container was made of.
fn images(node: &Node) -> Result<Vec<Present>, knarr_images::Error> {
    let mut used = std::collections::BTreeSet::new();
    for container in node.runtime.list_containers() {
        let reference = container.annotations.get(IMAGE_REF).unwrap_or(&container.image);
        used.extend(node.images.status(reference)?.map(|image| image.id));
    }
    let present = |image: knarr_oci::cri::Image| {
        let used = used.contains(&image.id);
        Present { id: image.id, size: image.size, used, pinned: false }
    };
    Ok(node.images.list()?.into_iter().map(present).collect())
}
