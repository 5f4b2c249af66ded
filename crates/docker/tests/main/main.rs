//! The dialect over a fake object store, a fake machine and fake images: the real docker command line, and raw HTTP.
#![allow(missing_docs, reason = "helpers of tests")]

mod cli;
mod fake_images;
mod fake_kube;
mod fake_machine;
mod house;
mod http_api;
mod python_client;
