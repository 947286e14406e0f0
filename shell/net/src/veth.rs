//! A routed veth pair per Pod.

use std::fmt;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::Path;

use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::neighbour::NeighbourState;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::namespace::enter;

/// The gateways that Pods believe in; no machine has them.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const INSIDE: &str = "eth0";

/// What went wrong, and while doing what.
#[derive(Debug)]
pub struct NetError {
    what: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl std::error::Error for NetError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Names what was being done.
pub(crate) fn during<E: Into<Source>>(what: impl Into<String>) -> impl FnOnce(E) -> NetError {
    let what = what.into();
    move |error| NetError { what, source: error.into() }
}

/// What a Pod's network is to be.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Name of the host end, at most 15 bytes, unique on the machine.
    pub link: String,
    /// The Pod's addresses.
    pub addresses: Vec<IpAddr>,
}

/// The links of this node.
#[derive(Clone)]
pub struct Network {
    pub(crate) host: Handle,
}

impl Network {
    /// Opens netlink in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no netlink.
    pub fn open() -> Result<Self, NetError> {
        let (connection, host, _) = rtnetlink::new_connection().map_err(during("open netlink"))?;
        tokio::spawn(connection);
        Ok(Self { host })
    }

    /// Connects a Pod's network namespace, named by a path. Safe to repeat.
    ///
    /// # Errors
    /// [`NetError`]; what was made is removed again.
    pub async fn attach(&self, netns: &Path, want: &Attachment) -> Result<(), NetError> {
        let result = self.connect(netns, want).await;
        if result.is_err() {
            self.detach(&want.link).await.ok();
        }
        result
    }

    async fn connect(&self, netns: &Path, want: &Attachment) -> Result<(), NetError> {
        self.detach(&want.link).await?;
        let inside = File::open(netns).map_err(during(format!("open {}", netns.display())))?;
        let peer = format!("p{}", &want.link[..want.link.len().min(14)]);
        let links = self.host.link();
        links
            .add(LinkVeth::new(&want.link, &peer).build())
            .execute()
            .await
            .map_err(during(format!("make link {}", want.link)))?;
        let (outer, mac) = find(&self.host, &want.link).await?.ok_or_else(|| lost(&want.link))?;
        let (inner, inner_mac) = find(&self.host, &peer).await?.ok_or_else(|| lost(&peer))?;
        let moved = LinkUnspec::new_with_index(inner).setns_by_fd(inside.as_raw_fd()).build();
        links.set(moved).execute().await.map_err(during("move a link into a Pod"))?;
        links
            .set(LinkUnspec::new_with_index(outer).up().build())
            .execute()
            .await
            .map_err(during("bring a link up"))?;
        forward(&want.link, want.addresses.iter().any(IpAddr::is_ipv6))?;
        within(inside, {
            let addresses = want.addresses.clone();
            move |handle| Box::pin(set_up_inside(handle, peer, addresses, mac))
        })
        .await?;
        for address in &want.addresses {
            neighbour(&self.host, outer, *address, &inner_mac).await?;
            self.route(outer, *address).await?;
        }
        Ok(())
    }

    async fn route(&self, link: u32, address: IpAddr) -> Result<(), NetError> {
        let route = match address {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .output_interface(link)
                .scope(netlink_packet_route::route::RouteScope::Link)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .output_interface(link)
                .build(),
        };
        let added = self.host.route().add(route).replace().execute().await;
        added.map_err(during(format!("route {address}")))
    }

    /// Removes a Pod's link, and its routes with it. Safe to repeat.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn detach(&self, link: &str) -> Result<(), NetError> {
        let Some((index, _)) = find(&self.host, link).await? else { return Ok(()) };
        let gone = self.host.link().del(index).execute().await;
        gone.map_err(during(format!("remove link {link}")))
    }

    /// Brings the loopback link of a network namespace up.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn loopback(&self, netns: &Path) -> Result<(), NetError> {
        let inside = File::open(netns).map_err(during(format!("open {}", netns.display())))?;
        within(inside, |handle| Box::pin(async move { up(&handle, "lo").await })).await
    }

    /// Names of the links that begin with `prefix`.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn links(&self, prefix: &str) -> Result<Vec<String>, NetError> {
        let mut names = Vec::new();
        let mut all = self.host.link().get().execute();
        while let Some(link) = all.try_next().await.map_err(during("list links"))? {
            names.extend(link.attributes.into_iter().filter_map(|attribute| match attribute {
                LinkAttribute::IfName(name) if name.starts_with(prefix) => Some(name),
                _ => None,
            }));
        }
        Ok(names)
    }
}

pub(crate) fn lost(link: &str) -> NetError {
    during::<Source>(format!("find link {link}"))("it is gone".into())
}

/// Lets packets in from one link be forwarded; other links keep their setting.
pub(crate) fn forward(link: &str, v6: bool) -> Result<(), NetError> {
    for family in if v6 { &["ipv4", "ipv6"][..] } else { &["ipv4"] } {
        let path = format!("/proc/sys/net/{family}/conf/{link}/forwarding");
        std::fs::write(&path, "1").map_err(during(format!("write {path}")))?;
    }
    // IPv6 looks at the machine's setting only, except where a link may insist (Linux 6.17).
    let insist = format!("/proc/sys/net/ipv6/conf/{link}/force_forwarding");
    if v6 && Path::new(&insist).exists() {
        std::fs::write(&insist, "1").map_err(during(format!("write {insist}")))?;
    }
    Ok(())
}

/// Index and MAC of a link.
pub(crate) async fn find(handle: &Handle, name: &str) -> Result<Option<(u32, Vec<u8>)>, NetError> {
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    match found.try_next().await {
        Ok(None) => Ok(None),
        Ok(Some(link)) => {
            let mac = link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::Address(mac) => Some(mac),
                _ => None,
            });
            Ok(Some((link.header.index, mac.unwrap_or_default())))
        }
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc_enodev() => {
            Ok(None)
        }
        Err(error) => Err(during(format!("find link {name}"))(error)),
    }
}

/// ENODEV, as netlink reports a link that is not there.
fn libc_enodev() -> i32 {
    rustix::io::Errno::NODEV.raw_os_error()
}

pub(crate) type Job = std::pin::Pin<Box<dyn Future<Output = Result<(), NetError>>>>;

/// Runs a job with netlink inside a network namespace: on a thread of its own, since a thread that
/// has entered a namespace is of no use to anybody else.
pub(crate) async fn within(
    netns: File,
    job: impl FnOnce(Handle) -> Job + Send + 'static,
) -> Result<(), NetError> {
    let (send, done) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let run = || {
            enter(&netns).map_err(during("enter a network namespace"))?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .map_err(during("start a runtime"))?;
            runtime.block_on(async {
                let (connection, handle, _) =
                    rtnetlink::new_connection().map_err(during("open netlink"))?;
                tokio::spawn(connection);
                job(handle).await
            })
        };
        // Nobody waits any more when the caller was dropped.
        let _ = send.send(run());
    });
    done.await.map_err(during("wait for a network namespace"))?
}

pub(crate) async fn up(handle: &Handle, name: &str) -> Result<(), NetError> {
    let (index, _) = find(handle, name).await?.ok_or_else(|| lost(name))?;
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.map_err(during(format!("bring {name} up")))
}

async fn set_up_inside(
    handle: Handle,
    peer: String,
    addresses: Vec<IpAddr>,
    gateway_mac: Vec<u8>,
) -> Result<(), NetError> {
    up(&handle, "lo").await?;
    let (index, _) = find(&handle, &peer).await?.ok_or_else(|| lost(&peer))?;
    let named = LinkUnspec::new_with_index(index).name(INSIDE).build();
    handle.link().set(named).execute().await.map_err(during("name a link"))?;
    up(&handle, INSIDE).await?;
    for address in addresses {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        add_address(&handle, index, address, bits).await?;
        default_route(&handle, index, address, gateway_mac.clone()).await?;
    }
    Ok(())
}

/// Gives a link an address, at once of use.
pub(crate) async fn add_address(
    handle: &Handle,
    link: u32,
    address: IpAddr,
    prefix: u8,
) -> Result<(), NetError> {
    let mut request = handle.address().add(link, address, prefix).replace();
    if address.is_ipv6() {
        // Nobody else has it: looking for duplicates would keep it unusable for seconds.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    request.execute().await.map_err(during(format!("add address {address}")))
}

/// Names the MAC behind an address for good, so that nobody ever has to ask for it.
async fn neighbour(
    handle: &Handle,
    link: u32,
    address: IpAddr,
    mac: &[u8],
) -> Result<(), NetError> {
    let entry = handle.neighbours().add(link, address).link_layer_address(mac);
    let added = entry.state(NeighbourState::Permanent).execute().await;
    added.map_err(during(format!("add the neighbour entry of {address}")))
}

async fn default_route(
    handle: &Handle,
    link: u32,
    address: IpAddr,
    mac: Vec<u8>,
) -> Result<(), NetError> {
    let gateway: IpAddr = if address.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() };
    neighbour(handle, link, gateway, &mac).await?;
    let route = match gateway {
        IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(link)
            .onlink()
            .build(),
        IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(gateway)
            .output_interface(link)
            .onlink()
            .build(),
    };
    let added = handle.route().add(route).execute().await;
    added.map_err(during(format!("add the default route of {:?}", AddressFamily::Inet)))
}
