//! The report: one HTML file with its charts inside, no scripts and nothing to load.

use std::fmt::Write;

use crate::metrics::{Outcome, Sums};
use crate::run::Glance;
use crate::trace::INTERVAL_SECONDS;

/// Size of a chart. Units: pixels.
const WIDTH: f64 = 860.0;
/// See [`WIDTH`].
const HEIGHT: f64 = 180.0;
/// Room for the axis. Units: pixels.
const LEFT: f64 = 60.0;

/// What happened in each step.
#[derive(Clone, Debug, Default)]
pub struct Course {
    active_hosts: Vec<f64>,
    kilowatts: Vec<f64>,
    violated_percent: Vec<f64>,
    moves: Vec<f64>,
    last: Sums,
}

impl Course {
    /// Notes a step.
    pub fn note(&mut self, glance: &Glance) {
        let (now, before) = (&glance.sums, &self.last);
        let share = |part: f64, whole: f64| if whole > 0.0 { 100.0 * part / whole } else { 0.0 };
        self.active_hosts.push(number(glance.active_hosts));
        self.kilowatts.push((now.energy - before.energy) / INTERVAL_SECONDS / 1000.0);
        self.violated_percent.push(share(now.violated - before.violated, now.active - before.active));
        self.moves.push(number(usize::try_from(now.migrations - before.migrations).unwrap_or(usize::MAX)));
        self.last = *now;
    }

    /// The report.
    pub fn html(&self, title: &str, outcome: &Outcome) -> String {
        let mut page = String::from(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Nuée simulation</title><style>\
             body{font:14px sans-serif;margin:2em;color:#222;max-width:900px}td{padding:2px 16px 2px 0}\
             td+td{text-align:right;font-variant-numeric:tabular-nums}h2{font-size:15px;margin:1.4em 0 .2em}\
             svg{background:#fafafa}</style>",
        );
        let _written = write!(page, "<h1>{}</h1><table>", escape(title));
        for (name, value) in rows(outcome) {
            let _written = write!(page, "<tr><td>{name}</td><td>{value}</td></tr>");
        }
        page.push_str("</table>");
        let charts = [
            ("Machines on", &self.active_hosts, "#2563eb"),
            ("Power, kW", &self.kilowatts, "#d97706"),
            ("Active time with less given than wanted, %", &self.violated_percent, "#dc2626"),
            ("Migrations in five minutes", &self.moves, "#059669"),
        ];
        for (name, values, colour) in charts {
            let _written = write!(page, "<h2>{name}</h2>{}", chart(values, colour));
        }
        page.push_str("</html>\n");
        page
    }
}

/// The figures of an outcome, as people read them.
pub fn rows(outcome: &Outcome) -> Vec<(&'static str, String)> {
    vec![
        ("energy", format!("{:.2} kWh", outcome.energy_kwh)),
        ("least possible energy", format!("{:.2} kWh", outcome.bound_kwh)),
        (
            "above the bound",
            format!("{:.1} %", 100.0 * (outcome.energy_kwh / outcome.bound_kwh.max(f64::MIN_POSITIVE) - 1.0)),
        ),
        ("migrations", outcome.migrations.to_string()),
        ("SLATAH", format!("{:.3} %", 100.0 * outcome.slatah)),
        ("PDM", format!("{:.4} %", 100.0 * outcome.pdm)),
        ("SLAV", format!("{:.3e}", outcome.slav())),
        ("ESV", format!("{:.3e}", outcome.esv())),
        ("demand unserved", format!("{:.4} %", 100.0 * outcome.unserved_share)),
        ("mean machines on", format!("{:.1}", outcome.mean_active_hosts)),
        ("machines woken", outcome.wakes.to_string()),
    ]
}

fn chart(values: &[f64], colour: &str) -> String {
    let top = values.iter().copied().fold(0.0, f64::max).max(1e-9);
    let step = (WIDTH - LEFT) / number(values.len().max(2) - 1);
    let mut points = String::new();
    let mut x = LEFT;
    for value in values {
        let _written = write!(points, "{x:.1},{:.1} ", HEIGHT - 20.0 - (HEIGHT - 30.0) * value / top);
        x += step;
    }
    let floor = HEIGHT - 20.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">\
         <line x1=\"{LEFT}\" y1=\"{floor}\" x2=\"{WIDTH}\" y2=\"{floor}\" stroke=\"#999\"/>\
         <text x=\"4\" y=\"16\">{top:.1}</text><text x=\"4\" y=\"{floor}\">0</text>"
    );
    for hour in [0.0, 6.0, 12.0, 18.0, 24.0] {
        let x = LEFT + (WIDTH - LEFT - 24.0) * hour / 24.0;
        let _written = write!(svg, "<text x=\"{x:.0}\" y=\"{}\">{hour} h</text>", HEIGHT - 4.0);
    }
    let _written =
        write!(svg, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/></svg>");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
