//! The images of the tests, built from Debian's static busybox: no network needed.

use std::fs;

use anyhow::{Context, Result};

use crate::Nuee;

/// Where Debian's package busybox-static puts it.
const BUSYBOX: &str = "/bin/busybox";

/// Builds `busybox:test` and `web:test`.
pub fn build(nuee: &Nuee) -> Result<()> {
    let context = nuee.files().join("busybox-context");
    fs::create_dir_all(&context)?;
    fs::copy(BUSYBOX, context.join("busybox")).context("busybox-static is not installed")?;
    fs::write(
        context.join("Dockerfile"),
        "FROM scratch\n\
         COPY busybox /bin/busybox\n\
         RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
         RUN mkdir -p /tmp /etc && echo 'root:x:0:0:root:/:/bin/sh' > /etc/passwd && echo 'nobody:x:65534:65534:nobody:/:/bin/sh' >> /etc/passwd\n\
         ENV PATH=/bin GREETING=hello\n\
         CMD [\"sh\"]\n",
    )?;
    nuee.docker(&["build", "--quiet", "--tag", "busybox:test", &context.display().to_string()])?.success()?;
    let context = nuee.files().join("web-context");
    fs::create_dir_all(&context)?;
    fs::write(context.join("index.html"), "hello from a cloud\n")?;
    fs::write(
        context.join("Dockerfile"),
        "FROM busybox:test\n\
         WORKDIR /www\n\
         COPY index.html .\n\
         EXPOSE 80\n\
         CMD [\"httpd\", \"-f\", \"-p\", \"80\"]\n",
    )?;
    nuee.docker(&["build", "--quiet", "--tag", "web:test", &context.display().to_string()])?.success()?;
    Ok(())
}
