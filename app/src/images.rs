//! `knarr images`: what the node's image store holds. It works beside a running agent, as the
//! store is locked by whoever changes it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use knarr_images::{PullOptions, Puller, Scheme, Store};
use knarr_oci::credentials::Credentials;
use knarr_oci::cri::Image;

use crate::flags::{ImagesCommand, ImagesFlags, PullFlags};
use crate::paths::NodePaths;
use crate::process::{self, Fatal};
use crate::pull_progress::Display;

/// Carries out an images command.
pub(crate) fn run(flags: ImagesFlags) -> Result<(), Fatal> {
    let paths = NodePaths::new(&flags.root_dir);
    let store = Store::open(paths.state.join("images"))?;
    match flags.command {
        ImagesCommand::Import { file, name } => {
            let archive = File::open(&file)
                .map_err(|error| Fatal(format!("cannot read {}: {error}", file.display())))?;
            for image in store.import(archive, name.as_deref())? {
                for tag in &image.repo_tags {
                    println!("{tag} {}", image.id);
                }
            }
            Ok(())
        }
        ImagesCommand::Export { image, file } => export(&store, &image, &file),
        ImagesCommand::Pull(flags) => pull(store, &paths, &flags),
        ImagesCommand::Ls => list(&store),
        ImagesCommand::Rm { image } => {
            if store.status(&image)?.is_none() {
                return Err(unknown(&image));
            }
            store.remove(&image, &in_use(&paths)?)?;
            println!("{image} removed");
            Ok(())
        }
        ImagesCommand::Prune => prune(&store, &paths),
    }
}

fn unknown(image: &str) -> Fatal {
    Fatal(format!("there is no image {image}: see `knarr images ls`"))
}

/// Layers of living containers stay: their sandboxes say which those are.
fn in_use(paths: &NodePaths) -> Result<BTreeSet<String>, Fatal> {
    Ok(knarr_sandbox::layers_in_use(&paths.state.join("runtime"))?)
}

fn pull(store: Store, paths: &NodePaths, flags: &PullFlags) -> Result<(), Fatal> {
    let wrong = || Fatal("--creds is USER:PASSWORD".to_owned());
    let credentials = flags.creds.as_deref().map(|text| Credentials::parse(text).ok_or_else(wrong));
    let options = |display: &Display| -> Result<PullOptions, Fatal> {
        Ok(PullOptions {
            credentials: credentials.transpose()?,
            scheme: if flags.plain_http { Scheme::Plain } else { Scheme::Usual },
            watcher: Some(display.watcher()),
        })
    };
    let display = Display::default();
    let options = options(&display)?;
    let puller = Puller::open(Arc::new(store), Some(paths.certs.clone()))?;
    process::run(|mut drain| async move {
        let image = tokio::select! {
            image = puller.pull(&flags.image, &options) => image,
            _ = drain.changed() => return Err(Fatal("interrupted; what came is kept".to_owned())),
            never = display.draw() => match never {},
        };
        display.last();
        let image = image?;
        let digest = image.repo_digests.first().unwrap_or(&image.id);
        println!("{digest} {}", megabytes(image.size));
        Ok(())
    })
}

fn export(store: &Store, image: &str, file: &Path) -> Result<(), Fatal> {
    if store.status(image)?.is_none() {
        return Err(unknown(image));
    }
    let cannot = |error: std::io::Error| Fatal(format!("cannot write {}: {error}", file.display()));
    // Beside its place first: a broken export never looks like a good one.
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let part = dir.join(format!(".{}.{}", std::process::id(), "part"));
    let mut out = std::io::BufWriter::new(File::create(&part).map_err(cannot)?);
    let written = store.export(image, &mut out).map_err(Fatal::from);
    let placed = written
        .and_then(|()| out.flush().and_then(|()| std::fs::rename(&part, file)).map_err(cannot));
    if placed.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&part);
    }
    placed
}

/// Removes every image that no container stands on.
fn prune(store: &Store, paths: &NodePaths) -> Result<(), Fatal> {
    let in_use = in_use(paths)?;
    let (mut count, mut bytes) = (0, 0);
    for image in store.list()? {
        let top = store.unpacked(&image.id)?.rootfs.lower.into_iter().next();
        if top.is_some_and(|top| in_use.contains(&top)) {
            continue;
        }
        store.remove(&image.id, &in_use)?;
        println!("{} removed", names(&image).next().unwrap_or(&image.id));
        (count, bytes) = (count + 1, bytes + image.size);
    }
    store.forget_broken_off()?;
    println!("{count} images removed, {}", megabytes(bytes));
    Ok(())
}

fn names(image: &Image) -> impl Iterator<Item = &String> {
    image.repo_tags.iter().chain(&image.repo_digests)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn list(store: &Store) -> Result<(), Fatal> {
    println!("{:<60} {:<14} {:>10}", "IMAGE", "ID", "SIZE");
    for image in store.list()? {
        let id = image.id.trim_start_matches("sha256:");
        let id = &id[..id.len().min(12)];
        let size = megabytes(image.size);
        for tag in names(&image) {
            println!("{tag:<60} {id:<14} {size:>10}");
        }
    }
    Ok(())
}
