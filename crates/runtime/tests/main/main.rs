//! Real containers from a busybox root file system, run by the real shim. Needs root and crun or runc.

mod apart;
mod attacks;
mod carried;
mod cost;
mod joining;
mod life;
mod limits;
mod place;
mod streams;
