//! What an instruction means: from the state of a stage and an instruction to the next state and one action. Pure: no
//! files, no clock, no store.

use std::cell::Cell;
use std::collections::BTreeMap;

use crate::build::expand::{expand, expand_only};
use crate::build::flags::MountSpec;
use crate::build::lines::words;
use crate::build::parse::{Command, CopySpec, Instruction, RunSpec};
use crate::config::{ContainerDefaults, Empty};
use crate::error::{Error, Result};

/// Arguments that need no ARG, stay out of the history and do not spoil the cache.
const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];
/// Most that the arguments, variables and labels of a stage may take, and what one instruction makes of its words: each may be made of
/// others, twice as long every time. Units: bytes.
const HELD_MAX: usize = 4 << 20;

/// Whether an argument needs no ARG.
pub fn is_predefined(name: &str) -> bool {
    PREDEFINED.contains(&name)
}

/// PATH of commands in images that say none. Source: Docker.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The state of a stage.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The configuration so far.
    pub config: ContainerDefaults,
    /// MAINTAINER.
    pub author: Option<String>,
    /// Arguments that ARG declared, with their values.
    pub args: BTreeMap<String, Option<String>>,
    /// Whether CMD was said in this stage.
    pub(super) cmd_said: bool,
}

/// What the whole build was given.
#[derive(Clone, Debug)]
pub struct Globals {
    /// `--build-arg`.
    pub build_args: BTreeMap<String, Option<String>>,
    /// ARGs before the first FROM.
    pub args: BTreeMap<String, Option<String>>,
    /// The escape character.
    pub escape: char,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Only the configuration changed.
    Commit {
        /// The instruction as the history shows it.
        comment: String,
    },
    /// A directory is to be there.
    MakeDirectory {
        /// The instruction as the history shows it.
        comment: String,
        /// The directory, absolute.
        path: String,
    },
    /// A command is to be run.
    Run {
        /// What the history shows.
        created_by: String,
        /// Program and arguments.
        command: Vec<String>,
        /// `NAME=value`.
        environment: Vec<String>,
        /// What is mounted beside the root file system; all is expanded.
        mounts: Vec<MountSpec>,
        /// The network that the instruction itself asks for.
        network: Option<String>,
        /// Whether the command asks for all privileges.
        insecure: bool,
    },
    /// Files are to be copied; all is expanded.
    Copy(CopySpec),
}

impl State {
    /// The state after FROM.
    pub fn new(config: ContainerDefaults, author: Option<String>) -> State {
        State { config, author, ..State::default() }
    }

    /// The shell of shell forms.
    pub fn shell(&self) -> Vec<String> {
        self.config.shell.clone().unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()])
    }

    fn value(&self, name: &str) -> Option<String> {
        let in_environment =
            || self.config.env.iter().find_map(|line| line.split_once('=').filter(|(k, _)| *k == name));
        in_environment().map(|(_, value)| value.to_owned()).or_else(|| self.args.get(name).cloned().flatten())
    }

    fn check_size(&self) -> Result<()> {
        let labels = self.config.labels.iter().map(|(name, value)| name.len() + value.len());
        let variables = self.config.env.iter().map(String::len);
        check_held(argument_bytes(&self.args) + labels.chain(variables).sum::<usize>())
    }

    fn set_env(&mut self, name: &str, value: &str) {
        let line = format!("{name}={value}");
        let held = |held: &&mut String| held.split('=').next() == Some(name);
        match self.config.env.iter_mut().find(held) {
            Some(held) => *held = line,
            None => self.config.env.push(line),
        }
    }
}

fn argument_bytes(args: &BTreeMap<String, Option<String>>) -> usize {
    args.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, String::len)).sum()
}

fn check_held(bytes: usize) -> Result<()> {
    match bytes <= HELD_MAX {
        true => Ok(()),
        false => Err(Error::Invalid(format!("arguments, variables and labels take more than {HELD_MAX} bytes"))),
    }
}

/// Evaluates one instruction (never FROM, which the engine does).
///
/// Errors: `Invalid`, without the line.
pub fn evaluate(state: &mut State, instruction: &Instruction, globals: &Globals) -> Result<Action> {
    let action = apply(state, instruction, globals)?;
    state.check_size()?;
    Ok(action)
}

fn apply(state: &mut State, instruction: &Instruction, globals: &Globals) -> Result<Action> {
    let before = state.clone();
    let lookup = |name: &str| before.value(name);
    let made = Cell::new(0);
    let word = |text: &str| {
        let word = expand(text, globals.escape, &lookup)?;
        made.set(made.get() + word.len());
        check_held(made.get()).map(|()| word)
    };
    let commit = |comment: String| Ok(Action::Commit { comment });
    match instruction {
        Instruction::From { .. } => Err(Error::Internal("FROM is no step of a stage".to_owned())),
        Instruction::Run(spec) => run(state, spec, globals, &word),
        Instruction::Copy(spec) => copy(spec, globals, &lookup).map(Action::Copy),
        Instruction::Env(pairs) => {
            let mut comment = "ENV".to_owned();
            for (name, value) in pairs {
                let (name, value) = (word(name)?, word(value)?);
                comment.push_str(&format!(" {name}={value}"));
                state.set_env(&name, &value);
            }
            commit(comment)
        }
        Instruction::Label(pairs) => {
            let mut comment = "LABEL".to_owned();
            for (name, value) in pairs {
                let (name, value) = (word(name)?, word(value)?);
                comment.push_str(&format!(" {name}={value}"));
                state.config.labels.insert(name, value);
            }
            commit(comment)
        }
        Instruction::Arg(args) => {
            let mut comment = "ARG".to_owned();
            for (name, default) in args {
                let default = default.as_deref().map(word).transpose()?;
                comment.push_str(&match &default {
                    Some(value) => format!(" {name}={value}"),
                    None => format!(" {name}"),
                });
                // The command line wins, then the default, then what was said before the first FROM.
                let given = globals.build_args.get(name).cloned().flatten();
                let global = || globals.args.get(name).cloned().flatten();
                state.args.insert(name.clone(), given.or(default).or_else(global));
            }
            commit(comment)
        }
        Instruction::WorkingDirectory(path) => {
            let path = word(path)?;
            let path = join(&state.config.working_dir, &path);
            state.config.working_dir.clone_from(&path);
            Ok(Action::MakeDirectory { comment: format!("WORKDIR {path}"), path })
        }
        Instruction::Cmd(command) => {
            let command = in_shell(state, command);
            let comment = format!("CMD {}", quoted(&command));
            state.config.cmd = Some(command);
            state.cmd_said = true;
            commit(comment)
        }
        Instruction::Entrypoint(command) => {
            let command = in_shell(state, command);
            let comment = format!("ENTRYPOINT {}", quoted(&command));
            state.config.entrypoint = Some(command).filter(|command| !command.is_empty());
            // The base image's arguments were for the base image's entrypoint.
            if !state.cmd_said {
                state.config.cmd = None;
            }
            commit(comment)
        }
        Instruction::Expose(ports) => expose(state, ports, &word, globals.escape),
        Instruction::User(user) => {
            state.config.user = word(user)?;
            commit(format!("USER {}", state.config.user))
        }
        Instruction::Volume(paths) => {
            let paths = paths.iter().map(|path| word(path)).collect::<Result<Vec<_>>>()?;
            for path in &paths {
                if path.trim().is_empty() {
                    return Err(Error::Invalid("VOLUME specified can not be an empty string".to_owned()));
                }
                state.config.volumes.insert(path.clone(), Empty {});
            }
            commit(format!("VOLUME [{}]", paths.join(" ")))
        }
        Instruction::StopSignal(signal) => {
            let signal = word(signal)?;
            if !is_signal(&signal) {
                return Err(Error::Invalid(format!("invalid signal: {signal}")));
            }
            state.config.stop_signal = Some(signal.clone());
            commit(format!("STOPSIGNAL {signal}"))
        }
        Instruction::Healthcheck(check) => {
            let mut health = crate::config::Healthcheck { test: vec!["NONE".to_owned()], ..Default::default() };
            if let Some((settings, command)) = check {
                health = settings.clone();
                health.test = match command {
                    Command::Exec(words) => [vec!["CMD".to_owned()], words.clone()].concat(),
                    Command::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
                };
            }
            let comment = format!("HEALTHCHECK {}", serde_json::to_string(&health).unwrap_or_default());
            state.config.healthcheck = Some(health);
            commit(comment)
        }
        Instruction::Shell(shell) => {
            state.config.shell = Some(shell.clone());
            commit(format!("SHELL [{}]", shell.join(" ")))
        }
        Instruction::OnBuild(text) => {
            state.config.on_build.push(text.clone());
            commit(format!("ONBUILD {text}"))
        }
        Instruction::Maintainer(name) => {
            state.author = Some(name.clone());
            commit(format!("MAINTAINER {name}"))
        }
    }
}

/// Expands the name of a base image: only ARGs before the first FROM count.
pub fn base_image(image: &str, globals: &Globals) -> Result<String> {
    let name = expand(image, globals.escape, &|name| globals.args.get(name).cloned().flatten())?;
    if name.is_empty() {
        return Err(Error::Invalid(format!("base name ({image}) should not be blank")));
    }
    Ok(name)
}

/// Expands the `--platform` of FROM.
pub fn expand_platform(text: &str, globals: &Globals) -> Result<String> {
    expand(text, globals.escape, &|name| globals.args.get(name).cloned().flatten())
}

/// Declares an ARG that stands before the first FROM.
pub fn global_arg(globals: &mut Globals, args: &[(String, Option<String>)]) -> Result<()> {
    for (name, default) in args {
        let held = globals.args.clone();
        let lookup = |name: &str| held.get(name).cloned().flatten();
        let default = default.as_deref().map(|text| expand(text, globals.escape, &lookup)).transpose()?;
        let value = globals.build_args.get(name).cloned().flatten().or(default);
        globals.args.insert(name.clone(), value);
        check_held(argument_bytes(&globals.args))?;
    }
    Ok(())
}

/// What the history says of an instruction that runs nothing.
pub fn nop(state: &State, comment: &str) -> String {
    format!("{} #(nop)  {comment}", state.shell().join(" "))
}

fn in_shell(state: &State, command: &Command) -> Vec<String> {
    match command {
        Command::Exec(words) => words.clone(),
        Command::Shell(text) if text.is_empty() => Vec::new(),
        Command::Shell(text) => [state.shell(), vec![text.clone()]].concat(),
    }
}

fn run(state: &State, spec: &RunSpec, globals: &Globals, word: &dyn Fn(&str) -> Result<String>) -> Result<Action> {
    let command = in_shell(state, &spec.command);
    let mut mounts = spec.mounts.clone();
    for mount in &mut mounts {
        for text in [&mut mount.target, &mut mount.source, &mut mount.from, &mut mount.id].into_iter().flatten() {
            *text = word(text)?;
        }
    }
    let mut environment = state.config.env.clone();
    if !environment.iter().any(|line| line.starts_with("PATH=")) {
        environment.push(DEFAULT_PATH.to_owned());
    }
    let in_environment = |name: &str| state.config.env.iter().any(|line| line.split('=').next() == Some(name));
    let mut shown: Vec<String> = Vec::new();
    for (name, value) in &state.args {
        let Some(value) = value else { continue };
        if !in_environment(name) {
            shown.push(format!("{name}={value}"));
        }
    }
    environment.extend(shown.iter().cloned());
    let mut with_arguments = !shown.is_empty();
    for (name, value) in &globals.build_args {
        if let Some(value) = value
            && PREDEFINED.contains(&name.as_str())
            && !state.args.contains_key(name)
            && !in_environment(name)
        {
            environment.push(format!("{name}={value}"));
            with_arguments = true;
        }
    }
    shown.retain(|line| !PREDEFINED.contains(&line.split('=').next().unwrap_or_default()));
    let mut created_by = command.join(" ");
    if with_arguments {
        // Those that every build knows count, but are not told.
        let mut told = vec![format!("|{}", shown.len())];
        told.append(&mut shown);
        told.push(created_by);
        created_by = told.join(" ");
    }
    let (network, insecure) = (spec.network.clone(), spec.insecure);
    Ok(Action::Run { created_by, command, environment, mounts, network, insecure })
}

fn copy(spec: &CopySpec, globals: &Globals, lookup: &dyn Fn(&str) -> Option<String>) -> Result<CopySpec> {
    let word = |text: &String| expand(text, globals.escape, lookup);
    let mut spec = spec.clone();
    spec.sources = spec.sources.iter().map(word).collect::<Result<_>>()?;
    spec.destination = word(&spec.destination)?;
    spec.chown = spec.chown.as_ref().map(word).transpose()?;
    spec.chmod = spec.chmod.as_ref().map(word).transpose()?;
    spec.checksum = spec.checksum.as_ref().map(word).transpose()?;
    spec.excludes = spec.excludes.iter().map(word).collect::<Result<_>>()?;
    for document in spec.documents.iter_mut().filter(|document| document.expand) {
        document.content = expand_only(&document.content, globals.escape, lookup)?;
    }
    Ok(spec)
}

fn expose(state: &mut State, ports: &[String], word: &dyn Fn(&str) -> Result<String>, escape: char) -> Result<Action> {
    let mut shown = Vec::new();
    for text in ports {
        for port in words(&word(text)?, escape) {
            let (range, protocol) = port.split_once('/').unwrap_or((&port, "tcp"));
            let bad = || Error::Invalid(format!("invalid containerPort: {port}"));
            let protocol = protocol.to_ascii_lowercase();
            if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
                return Err(Error::Invalid(format!("invalid proto: {protocol}")));
            }
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u16, u16) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
            if first > last {
                return Err(bad());
            }
            for number in first..=last {
                state.config.exposed_ports.insert(format!("{number}/{protocol}"), Empty {});
            }
            shown.push(port);
        }
    }
    shown.sort();
    Ok(Action::Commit { comment: format!("EXPOSE {}", shown.join(" ")) })
}

fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=64).contains(&number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name).to_owned();
    let real_time = name.strip_prefix("RTMIN").or_else(|| name.strip_prefix("RTMAX"));
    real_time.is_some() || format!("SIG{name}").parse::<nix::sys::signal::Signal>().is_ok()
}

/// Words as Docker's history has them, which is as Go's `%q` writes a list.
fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("[{}]", words.join(" "))
}

/// A path as seen from a working directory: absolute, without `.` and `..`.
pub fn join(working_directory: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{working_directory}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::lines::cut;
    use crate::build::parse::parse;

    fn run_all(text: &str, build_args: &[(&str, &str)]) -> (State, Vec<Action>) {
        let globals = Globals {
            build_args: build_args.iter().map(|(k, v)| ((*k).to_owned(), Some((*v).to_owned()))).collect(),
            args: BTreeMap::from([("GLOBAL".to_owned(), Some("g".to_owned()))]),
            escape: '\\',
        };
        let mut state = State::default();
        let parsed = parse(&cut(text).unwrap(), crate::build::flags::Dialect::Classic).unwrap();
        let actions = parsed.iter().map(|p| evaluate(&mut state, &p.instruction, &globals).unwrap()).collect();
        (state, actions)
    }

    fn comments(text: &str) -> Vec<String> {
        let name = |action: Action| match action {
            Action::Commit { comment } | Action::MakeDirectory { comment, .. } => comment,
            Action::Run { created_by, .. } => created_by,
            Action::Copy(spec) => format!("{:?} {}", spec.sources, spec.destination),
        };
        run_all(text, &[]).1.into_iter().map(name).collect()
    }

    #[test]
    fn what_doubles_is_bounded() {
        let globals = || Globals { build_args: BTreeMap::new(), args: BTreeMap::new(), escape: '\\' };
        let doubled = |instruction: &str, times: usize| {
            let line = |at: usize| format!("{instruction} v{at}=$v{before}$v{before}\n", before = at - 1);
            format!("{instruction} v0=0123456789abcdef\n{}", (1..=times).map(line).collect::<String>())
        };
        let copies = |count| (0..count).map(|at| format!(" c{at}=$v15")).collect::<String>();
        let outcome = |text: &str| {
            let parsed = parse(&cut(text).unwrap(), crate::build::flags::Dialect::Classic).unwrap();
            let mut state = State::default();
            parsed.iter().try_for_each(|one| evaluate(&mut state, &one.instruction, &globals()).map(drop))
        };
        let is_refused = |text: &str| match outcome(text) {
            Ok(()) => false,
            Err(error) => error.to_string().contains("take more than 4194304 bytes"),
        };
        for instruction in ["ARG", "ENV"] {
            // 2^4 bytes doubled fifteen times are half a MiB; all that came before is as long again.
            let begun = doubled(instruction, 15);
            assert!(!is_refused(&begun), "{instruction}");
            assert!(is_refused(&format!("{begun}{instruction}{}", copies(16))), "{instruction}, in one line");
            assert!(
                is_refused(&format!("{begun}{}", copies(16).replace(" c", &format!("\n{instruction} c")))),
                "{instruction}"
            );
        }
        assert!(
            is_refused(&format!("{}\nVOLUME{}", doubled("ENV", 15), " $v15".repeat(16))),
            "what is held nowhere yet"
        );
        let parsed = parse(
            &cut(&format!("{}ARG{}", doubled("ARG", 15), copies(16))).unwrap(),
            crate::build::flags::Dialect::Classic,
        );
        let mut globals = globals();
        let refused = parsed.unwrap().iter().try_for_each(|one| match &one.instruction {
            Instruction::Arg(args) => global_arg(&mut globals, args),
            other => panic!("{other:?}"),
        });
        assert!(refused.unwrap_err().to_string().contains("take more than"));
    }

    #[test]
    fn one_env_line_sees_only_what_was_before_it() {
        let (state, _) = run_all("ENV a=1\nENV a=2 b=$a\nENV c=$a", &[]);
        assert_eq!(state.config.env, ["a=2", "b=1", "c=2"]);
    }

    #[test]
    fn arguments_come_from_the_command_line_then_the_default_then_the_top() {
        let (state, actions) =
            run_all("ARG A=1\nARG B=2\nARG GLOBAL\nENV B=env\nRUN x", &[("A", "9"), ("http_proxy", "p")]);
        assert_eq!(state.args["A"].as_deref(), Some("9"));
        assert_eq!(state.args["GLOBAL"].as_deref(), Some("g"));
        let Some(Action::Run { created_by, environment, .. }) = actions.last() else { panic!("no run") };
        assert_eq!(created_by, "|2 A=9 GLOBAL=g /bin/sh -c x");
        assert!(environment.contains(&"http_proxy=p".to_owned()) && environment.contains(&"B=env".to_owned()));
    }

    #[test]
    fn an_entrypoint_drops_an_inherited_cmd_only() {
        let globals = Globals { build_args: BTreeMap::new(), args: BTreeMap::new(), escape: '\\' };
        let mut state = State::default();
        state.config.cmd = Some(vec!["base".to_owned()]);
        let entrypoint = Instruction::Entrypoint(Command::Exec(vec!["e".to_owned()]));
        evaluate(&mut state, &entrypoint, &globals).unwrap();
        assert_eq!(state.config.cmd, None);
        evaluate(&mut state, &Instruction::Cmd(Command::Shell("c d".to_owned())), &globals).unwrap();
        evaluate(&mut state, &entrypoint, &globals).unwrap();
        assert_eq!(state.config.cmd.unwrap(), ["/bin/sh", "-c", "c d"]);
    }

    #[test]
    fn comments_are_dockers() {
        let text = "WORKDIR a\nWORKDIR ../b/./c\nCMD [\"x\",\"y\"]\nEXPOSE 80 53/udp\nVOLUME /a /b\nSHELL [\"/bin/x\",\"-c\"]\nRUN z\n\
                    ENV d=e\nCOPY $d f /$d/";
        let wanted = [
            "WORKDIR /a",
            "WORKDIR /b/c",
            "CMD [\"x\" \"y\"]",
            "EXPOSE 53/udp 80",
            "VOLUME [/a /b]",
            "SHELL [/bin/x -c]",
            "/bin/x -c z",
            "ENV d=e",
            "[\"e\", \"f\"] /e/",
        ];
        assert_eq!(comments(text), wanted);
        let (state, _) = run_all("EXPOSE 1-3 5/UDP", &[]);
        assert_eq!(state.config.exposed_ports.keys().collect::<Vec<_>>(), ["1/tcp", "2/tcp", "3/tcp", "5/udp"]);
        assert_eq!(join("/a", "../../x"), "/x");
        assert!(
            is_signal("SIGTERM") && is_signal("9") && is_signal("kill") && !is_signal("SIGWHAT") && !is_signal("0")
        );
    }
}
