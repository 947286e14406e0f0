//! `knarr images`: what the node's image store holds.

use std::fs::File;

use knarr_images::Store;

use crate::flags::{ImagesCommand, ImagesFlags};
use crate::paths::NodePaths;
use crate::process::Fatal;

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
        }
        ImagesCommand::Ls => list(&store)?,
        ImagesCommand::Rm { image } => {
            // Layers of living containers stay: their sandboxes say which those are.
            let in_use = knarr_sandbox::layers_in_use(&paths.state.join("runtime"))?;
            if store.status(&image)?.is_none() {
                return Err(Fatal(format!("there is no image {image}: see `knarr images ls`")));
            }
            store.remove(&image, &in_use)?;
            println!("{image} removed");
        }
    }
    Ok(())
}

fn list(store: &Store) -> Result<(), Fatal> {
    println!("{:<60} {:<14} {:>10}", "IMAGE", "ID", "SIZE");
    for image in store.list()? {
        let id = image.id.trim_start_matches("sha256:");
        let id = &id[..id.len().min(12)];
        let size = format!("{:.1} MB", image.size as f64 / 1e6);
        for tag in image.repo_tags.iter().chain(&image.repo_digests) {
            println!("{tag:<60} {id:<14} {size:>10}");
        }
    }
    Ok(())
}
