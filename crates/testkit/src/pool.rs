//! Several machines in namespaces of their own, on one switch, with a world beyond it.

use anyhow::{Context, Result};

use crate::{Nuee, Output, Space};

/// A machine's interface towards the switch.
pub const UPLINK: &str = "uplink0";
/// Address of the world, by which the machines would reach others.
pub const WORLD: &str = "198.18.0.254";

/// Machines `n1`, `n2`, …, of which the first holds the API.
pub struct Pool {
    switch: Space,
    program: String,
    /// The machines, the first one first.
    pub machines: Vec<Nuee>,
}

impl Pool {
    /// A pool of one machine, ready.
    pub fn start(program: &str) -> Result<Self> {
        let mut pool = Self::new(program)?;
        let first = pool.prepare()?;
        first.up()?;
        pool.machines.push(first);
        Ok(pool)
    }

    /// A switch without machines.
    pub fn new(program: &str) -> Result<Self> {
        let switch = Space::new()?;
        let lines = "ip link add switch type bridge && ip link set switch up && ip addr add 198.18.0.254/24 dev switch";
        shell(&switch, lines)?;
        Ok(Self { switch, program: program.to_owned(), machines: Vec::new() })
    }

    /// A machine on the switch, on which nothing runs.
    pub fn prepare(&self) -> Result<Nuee> {
        let number = self.machines.len() + 1;
        let nuee = Nuee::prepare(&self.program)?;
        std::fs::create_dir_all(nuee.data())?;
        std::fs::write(nuee.data().join("config.yaml"), format!("nodeName: n{number}\n"))?;
        let pid = nuee.space().pid();
        shell(
            &self.switch,
            &format!(
                "ip link add port{number} type veth peer name {UPLINK} netns {pid} && ip link set port{number} master switch up"
            ),
        )?;
        let lines = format!(
            "ip addr add {}/24 dev {UPLINK} && ip link set {UPLINK} up && ip route add default via {WORLD}",
            Self::address(number)
        );
        shell(nuee.space(), &lines)?;
        Ok(nuee)
    }

    /// Adds a machine by a new token; returns when it is ready.
    pub fn join(&mut self) -> Result<()> {
        let nuee = self.prepare()?;
        let command = self.machines[0].nuee(&["token", "create"])?.success()?;
        let mut words: Vec<&str> = command.text().split_whitespace().skip(1).collect();
        words.push("--detach");
        nuee.nuee(&words)?.success().with_context(|| nuee.log_end())?;
        self.machines.push(nuee);
        Ok(())
    }

    /// Address of a machine on the switch; the first one is number 1.
    pub fn address(number: usize) -> String {
        format!("198.18.0.{number}")
    }

    /// The machine with the API.
    pub fn first(&self) -> &Nuee {
        &self.machines[0]
    }

    /// A program in the world outside of all machines.
    pub fn outside(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = self.switch.command(program);
        command.args(arguments);
        Output::of(command)
    }

    /// Cuts a machine's cable, or mends it.
    pub fn plug(&self, number: usize, up: bool) -> Result<()> {
        shell(&self.switch, &format!("ip link set port{number} {}", if up { "up" } else { "down" }))
    }

    /// Stops everything and fails if anything is left behind on any machine.
    pub fn finish(mut self) -> Result<()> {
        while let Some(machine) = self.machines.pop() {
            machine.finish()?;
        }
        Ok(())
    }
}

fn shell(space: &Space, lines: &str) -> Result<()> {
    let mut command = space.command("sh");
    command.args(["-c", lines]);
    Output::of(command)?.success().map(drop)
}
