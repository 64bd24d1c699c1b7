//! The rows as a picture: bars, on a scale that multiplies, for what differs by orders of magnitude.

use std::fmt::Write;

use super::place::Place;
use super::rows::Row;

/// Pixels.
const WIDTH: f64 = 960.0;
const BAR: f64 = 18.0;
const GAP: f64 = 4.0;
const LABEL: f64 = 210.0;
const MARGIN: f64 = 16.0;
const NUMBER: f64 = 70.0;

/// One picture: for each place the times of single queries, and the rates of many.
pub fn svg(machine: &str, rows: &[Row]) -> String {
    let mut places: Vec<Place> = Vec::new();
    for row in rows {
        if !places.contains(&row.place) {
            places.push(row.place);
        }
    }
    let mut body = String::new();
    let mut y = MARGIN + 20.0;
    text(&mut body, MARGIN, y, "16", "600", &format!("pm bench · {machine} · the scale multiplies"));
    y += 16.0;
    for place in places {
        let here = || rows.iter().filter(move |row| row.place == place);
        let single: Vec<(&Row, f64)> =
            here().filter(|row| row.in_flight == 1).map(|row| (row, row.measured.p50 as f64 / 1000.0)).collect();
        let crowd: Vec<(&Row, f64)> =
            here().filter(|row| row.in_flight > 1).map(|row| (row, row.measured.rate / 1000.0)).collect();
        for (title, unit, bars) in [("one at a time, p50", "µs", single), ("many at once", "k/s", crowd)] {
            if !bars.is_empty() {
                y = panel(&mut body, y + 22.0, &format!("{place}: {title}, {unit}"), &bars);
            }
        }
    }
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// Bars below each other, beginning at `y`. Gives where they end.
fn panel(body: &mut String, mut y: f64, title: &str, bars: &[(&Row, f64)]) -> f64 {
    text(body, MARGIN, y, "13", "600", title);
    y += 8.0;
    let values = || bars.iter().map(|(_, value)| value.max(1e-3).log10());
    let least = values().fold(f64::INFINITY, f64::min).floor();
    let most = values().fold(f64::NEG_INFINITY, f64::max).ceil().max(least + 1.0);
    let room = WIDTH - LABEL - NUMBER - 2.0 * MARGIN;
    for (row, value) in bars {
        let width = (value.max(1e-3).log10() - least) / (most - least) * room;
        let label = format!("{} {} · {} B · {}", row.transport(), row.mode, row.size, row.in_flight);
        text(body, MARGIN, y + BAR - 5.0, "12", "400", &label);
        let _ = writeln!(
            body,
            "<rect x=\"{}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>",
            MARGIN + LABEL,
            width.max(1.0),
            colour(row.transport())
        );
        let number = if *value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        text(body, MARGIN + LABEL + width.max(1.0) + 6.0, y + BAR - 5.0, "12", "400", &number);
        y += BAR + GAP;
    }
    y
}

fn text(body: &mut String, x: f64, y: f64, size: &str, weight: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ =
        writeln!(body, "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" font-weight=\"{weight}\">{text}</text>");
}

fn colour(transport: &str) -> &'static str {
    match transport {
        "limit" => "#b0b0b0",
        "shm" => "#2a9d8f",
        "uds" => "#457b9d",
        "stdio" => "#e9a23b",
        _ => "#8d6fb0",
    }
}
