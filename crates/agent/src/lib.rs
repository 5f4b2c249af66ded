//! Makes one machine match the objects bound to it: containers, pods, networks, volumes, services. Must never know other
//! machines, nor any dialect.
//!
//! | module | owns |
//! |---|---|
//! | [`Agent`] | start, end, and the shared context |
//! | `container` | Docker containers: life cycle, starts, health |
//! | `pod` | pods: decisions, sandboxes, volumes, probes, status |
//! | `guest` | virtual machines and disk images |
//! | `proxy` | services and their names |
//! | `overlay` | the way to the other machines' workloads |
//! | `ports` | addresses of `Port` objects, and whose they are |
//! | `networks`, `volumes` | the objects of these kinds |
//! | `node` | streams for the dialects: logs, exec, attach, files |
//! | `build` | RUN steps of image builds |
//! | `launch` | one process as an OCI specification |
//! | `garbage` | what is left of objects that are gone |
//! | `hands` | adapters to the hands |

mod agent;
mod archive;
mod attach;
mod build;
mod container;
mod context;
mod directories;
mod directory;
mod disk;
mod error;
mod events;
mod excerpt;
mod files;
mod floating;
mod garbage;
mod guest;
mod hands;
mod in_root;
mod informer;
mod launch;
mod machine;
mod netns;
mod networks;
mod node_impl;
mod node_object;
mod objects;
mod overlay;
mod patch;
mod pod;
mod ports;
mod processes;
mod proxy;
mod pull_secret;
mod quantity;
mod routers;
mod security;
mod sub_path;
mod subnets;
mod volumes;

pub use agent::{Agent, AgentOptions};
pub use error::{Error, Result};
pub use guest::moving::Peers;
pub use hands::{ImageArchive, ImageOrigin};
pub use networks::Outside;
