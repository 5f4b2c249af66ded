//! `nuee compose`: projects of several containers, for machines without Compose itself. It speaks to the Docker API and marks
//! what it makes as Compose does, so that both see each other's containers.

mod act;
pub mod engine;
mod interpolate;
mod load;
mod service;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use self::act::Work;
use self::engine::Engine;
use self::load::Request;

/// Names of Compose files, in the order in which they are looked for.
const FILES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
/// Names of the files that override them.
const OVERRIDES: [&str; 4] =
    ["compose.override.yaml", "compose.override.yml", "docker-compose.override.yml", "docker-compose.override.yaml"];

/// Run projects of several containers from a Compose file
#[derive(clap::Args)]
pub struct Arguments {
    /// Compose file; may be given several times, later ones override earlier ones
    #[arg(short, long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Name of the project
    #[arg(short, long = "project-name", value_name = "NAME", env = "COMPOSE_PROJECT_NAME")]
    project_name: Option<String>,
    /// Directory that paths in the file are seen from
    #[arg(long, value_name = "DIRECTORY")]
    project_directory: Option<PathBuf>,
    /// Profile that is on; may be given several times
    #[arg(long = "profile", value_name = "NAME", env = "COMPOSE_PROFILES", value_delimiter = ',')]
    profiles: Vec<String>,
    /// File of variables, in place of .env
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make and start the containers
    Up {
        /// Services; all when none are named
        services: Vec<String>,
        /// Stay in the background
        #[arg(short, long)]
        detach: bool,
        /// Build images even when they are here
        #[arg(long)]
        build: bool,
    },
    /// Stop and remove containers and networks
    Down {
        /// Remove the project's volumes too
        #[arg(short, long)]
        volumes: bool,
    },
    /// List the containers
    Ps {
        /// Those that do not run too
        #[arg(short, long)]
        all: bool,
        /// Ids only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show what the containers have written
    Logs {
        /// Services; all when none are named
        services: Vec<String>,
        /// Go on as they write
        #[arg(short, long)]
        follow: bool,
        /// Lines from the end of each
        #[arg(short = 'n', long, default_value = "all")]
        tail: String,
    },
    /// Build the images
    Build {
        /// Services; all when none are named
        services: Vec<String>,
    },
    /// Pull the images
    Pull {
        /// Services; all when none are named
        services: Vec<String>,
    },
    /// Print the project as it is understood
    Config {
        /// Names of the services only
        #[arg(long)]
        services: bool,
    },
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (request, variables) = request(arguments)?;
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let project = load::load(&request, &read)?;
    if let Command::Config { services } = &arguments.command {
        return config(&project, *services);
    }
    let engine = Engine::find(crate::instance::DEFAULT_SOCKET.into())?;
    let work = Work { engine, project, variables };
    let threads = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    threads.block_on(async {
        match &arguments.command {
            Command::Up { services, detach, build } => {
                work.up(services, *build).await?;
                if *detach { Ok(()) } else { work.logs(services, true, "all").await }
            }
            Command::Down { volumes } => work.down(*volumes).await,
            Command::Ps { all, quiet } => work.ps(*all, *quiet).await,
            Command::Logs { services, follow, tail } => work.logs(services, *follow, tail).await,
            Command::Build { services } => work.build(services).await,
            Command::Pull { services } => work.pull(services).await,
            Command::Config { .. } => Ok(()),
        }
    })
}

fn config(project: &load::Project, services: bool) -> Result<()> {
    if services {
        project.section("services").keys().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let mut document = project.document.clone();
    document.insert("name".to_owned(), serde_json::json!(project.name));
    print!("{}", serde_saphyr::to_string(&document)?);
    Ok(())
}

fn request(arguments: &Arguments) -> Result<(Request, BTreeMap<String, String>)> {
    let here = std::env::current_dir().context("cannot find the current directory")?;
    let mut files: Vec<PathBuf> = arguments.files.iter().map(|file| here.join(file)).collect();
    let directory = match (&arguments.project_directory, files.first().and_then(|file| file.parent())) {
        (Some(directory), _) => here.join(directory),
        (None, Some(parent)) => parent.to_owned(),
        (None, None) => here.clone(),
    };
    if files.is_empty() {
        let found = |names: &[&str]| names.iter().map(|name| directory.join(name)).find(|path| path.exists());
        let Some(file) = found(&FILES) else { bail!("no configuration file provided: not found") };
        files.push(file);
        files.extend(found(&OVERRIDES));
    }
    let env_file = arguments.env_file.as_ref().map(|file| here.join(file));
    let mut variables = match std::fs::read_to_string(env_file.clone().unwrap_or_else(|| directory.join(".env"))) {
        Ok(text) => environment_file(&text),
        Err(error) if env_file.is_some() => return Err(error).context("cannot read the file of variables"),
        Err(_) => BTreeMap::new(),
    };
    variables.extend(std::env::vars());
    let request = Request {
        files,
        directory,
        name: arguments.project_name.clone(),
        profiles: arguments.profiles.clone(),
        variables: variables.clone(),
    };
    Ok((request, variables))
}

/// `NAME=value` lines, with comments and quotes.
fn environment_file(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').filter(|_| !line.starts_with('#'))?;
        let value = value.trim();
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        let plain = || value.split(" #").next().unwrap_or(value).trim_end();
        Some((name.trim().to_owned(), quoted.unwrap_or_else(plain).to_owned()))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_files_are_read_as_compose_does() {
        let read = environment_file("# no\nA=1\nexport B = 'x # y'\nC=\"\"\nD=v # comment\nE\n");
        let all: Vec<(&str, &str)> = read.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(all, [("A", "1"), ("B", "x # y"), ("C", ""), ("D", "v")]);
    }
}
