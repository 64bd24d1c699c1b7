//! Draws an [`App`] into a buffer: only what is seen, and nothing outside of the area.

use std::time::Duration;

use pm::core::units::rounded;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};

use super::app::{App, Mode, Pane, Shown};
use super::keys::HELP;
use super::lines::{Kind, Line};
use super::text::{self, Glyph};
use crate::project::wire::{EventRow, MetricsRow, ProbeRow, memory, usage};

/// Names are cut there, so that what is said of them has room.
const LONGEST_NAME: usize = 24;

/// Draws it, and gives the place of the cursor where it is to be seen.
pub fn draw(app: &App, buffer: &mut Buffer) -> Option<Position> {
    let areas = app.areas();
    let mut canvas = Canvas { buffer, has_colours: app.has_colours() };
    title(app, &mut canvas, areas.title);
    list(app, &mut canvas, areas.header, areas.list);
    bar(app, &mut canvas, areas.bar);
    match app.pane() {
        Pane::Log => log(app, &mut canvas, areas.pane),
        Pane::Detail => detail(app, &mut canvas, areas.pane),
        Pane::Events => events(app, &mut canvas, areas.pane),
        Pane::Help => help(app, &mut canvas, areas.pane),
    }
    hint(app, &mut canvas, areas.hint)
}

/// A buffer that nobody can draw beside.
struct Canvas<'a> {
    buffer: &'a mut Buffer,
    has_colours: bool,
}

impl Canvas<'_> {
    /// Writes text in one row of an area, from a column on, and gives the column behind it. It may hold anything.
    fn text(&mut self, area: Rect, row: u16, column: u16, text: &str, style: Style) -> u16 {
        let room = area.width.saturating_sub(column);
        let glyphs = text::glyphs(text, room.into());
        let glyphs = glyphs.iter().map(|glyph| (&*glyph.symbol, glyph.width, style));
        self.cells(area, row, column, glyphs)
    }

    /// Writes cells in one row of an area, as long as they have room.
    fn cells<'g>(
        &mut self,
        area: Rect,
        row: u16,
        mut column: u16,
        glyphs: impl Iterator<Item = (&'g str, u16, Style)>,
    ) -> u16 {
        let area = area.intersection(self.buffer.area);
        if row >= area.height {
            return column;
        }
        for (symbol, width, style) in glyphs {
            if column.saturating_add(width) > area.width {
                break;
            }
            let style = self.style(style);
            for (behind, x) in (column..column + width).enumerate() {
                if let Some(cell) = self.buffer.cell_mut((area.x + x, area.y + row)) {
                    cell.reset();
                    // What is two cells wide has its second one empty.
                    cell.set_symbol(if behind == 0 { symbol } else { " " }).set_style(style);
                }
            }
            column += width;
        }
        column
    }

    /// Lays a style over a row.
    fn over(&mut self, area: Rect, row: u16, style: Style) {
        let area = area.intersection(self.buffer.area);
        if row < area.height {
            let style = self.style(style);
            self.buffer.set_style(Rect { y: area.y + row, height: 1, ..area }, style);
        }
    }

    fn style(&self, style: Style) -> Style {
        if self.has_colours { style } else { Style { fg: None, bg: None, ..style } }
    }
}

fn title(app: &App, canvas: &mut Canvas<'_>, area: Rect) {
    let is_up = |shown: &&Shown| matches!(shown.row.state.as_str(), "running" | "healthy");
    let up = app.services().iter().filter(is_up).count();
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let column = canvas.text(area, 0, 1, app.project(), bold);
    canvas.text(area, 0, column, &format!("  {up} of {} up", app.services().len()), Style::new());
}

/// A column of the list: its heading, its width, whether numbers stand in it, and what stands in it.
type Column = (&'static str, usize, bool, fn(&Shown) -> String);

fn columns(app: &App, width: u16) -> Vec<Column> {
    let names = app.services().iter().map(|shown| shown.row.service.chars().count());
    let name = names.max().unwrap_or(0).clamp(7, LONGEST_NAME);
    let mut columns: Vec<Column> = vec![
        ("SERVICE", name, false, |shown| shown.row.service.clone()),
        ("STATE", 9, false, |shown| shown.row.state.clone()),
    ];
    if width >= 80 {
        columns.push(("RESTARTS", 8, true, |shown| shown.row.restarts.to_string()));
    }
    if width >= 60 {
        columns.push(("UPTIME", 7, true, |shown| or_dash(shown.row.pid.map(|_| lived(shown)))));
        columns.push(("CPU", 6, true, |shown| or_dash(shown.cpu.map(|share| format!("{share:.1}%")))));
        columns.push(("MEMORY", 9, true, |shown| or_dash(shown.row.rss_bytes.map(memory))));
    }
    columns.push(("WHY", usize::from(width), false, |shown| {
        shown.row.why.clone().or_else(|| shown.row.status.clone()).unwrap_or_default()
    }));
    columns
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".into())
}

fn lived(shown: &Shown) -> String {
    rounded(Duration::from_millis(shown.row.lived_ms))
}

fn colour_of(state: &str) -> Style {
    match state {
        "running" | "healthy" => Style::new().fg(Color::Green),
        "failed" | "gave up" | "unhealthy" => Style::new().fg(Color::Red),
        "waiting" | "starting" | "backoff" | "stopping" => Style::new().fg(Color::Yellow),
        _ => Style::new().add_modifier(Modifier::DIM),
    }
}

fn list(app: &App, canvas: &mut Canvas<'_>, header: Rect, area: Rect) {
    let columns = columns(app, area.width);
    let cells = |canvas: &mut Canvas<'_>, area: Rect, row: u16, of: &dyn Fn(&Column) -> (String, Style)| {
        let mut from = 1;
        for column in &columns {
            let (text, style) = of(column);
            let width = u16::try_from(column.1).unwrap_or(u16::MAX).min(area.width.saturating_sub(from));
            let within = Rect { width: from + width, ..area };
            let length = u16::try_from(text.chars().count()).unwrap_or(u16::MAX);
            let indent = if column.2 { width.saturating_sub(length) } else { 0 };
            canvas.text(within, row, from + indent, &text, style);
            from = from.saturating_add(width).saturating_add(2);
        }
    };
    let dim = Style::new().add_modifier(Modifier::DIM);
    cells(canvas, header, 0, &|column| (column.0.to_string(), dim));
    let selected = app.selected().map(|(place, _)| place);
    let height = usize::from(area.height);
    let last = app.services().len().saturating_sub(height);
    let first = selected.unwrap_or(0).saturating_sub(height / 2).min(last);
    for (row, (place, shown)) in (0..area.height).zip(app.services().iter().enumerate().skip(first)) {
        cells(canvas, area, row, &|column| {
            let style = if column.0 == "STATE" { colour_of(&shown.row.state) } else { Style::new() };
            (column.3(shown), style)
        });
        if Some(place) == selected {
            canvas.over(area, row, Style::new().add_modifier(Modifier::REVERSED));
        }
    }
}

fn bar(app: &App, canvas: &mut Canvas<'_>, area: Rect) {
    let name = app.selected().map_or("", |(_, shown)| &shown.row.service);
    let mut text = match app.pane() {
        Pane::Log => format!("── {name} "),
        Pane::Detail => format!("── {name}: details "),
        Pane::Events => "── events ".into(),
        Pane::Help => "── keys ".into(),
    };
    if app.pane() == Pane::Log {
        match app.log() {
            Some(log) if !app.follows() => {
                let below = log.lines.end().saturating_sub(app.top().0 + u64::from(app.areas().pane.height));
                text += &format!("── {below} lines below, f follows ");
            }
            _ => text += "── follows ",
        }
        if app.wraps() {
            text += "── wrapped ";
        }
        if app.left() > 0 {
            text += &format!("── from column {} ", app.left() + 1);
        }
        if !app.search().is_empty() {
            text += &format!("── /{} ", app.search());
        }
    }
    let style = Style::new().add_modifier(Modifier::DIM);
    let end = canvas.text(area, 0, 0, &text, style);
    canvas.cells(area, 0, end, (end..area.width).map(|_| ("─", 1, style)));
}

fn log(app: &App, canvas: &mut Canvas<'_>, area: Rect) {
    let Some(log) = app.log().filter(|log| !log.lines.is_empty()) else {
        let text = if app.copies() { "" } else { "nothing was printed yet" };
        canvas.text(area, 0, 0, text, Style::new().add_modifier(Modifier::DIM));
        return;
    };
    let (mut number, mut skipped) = app.top();
    let mut row = 0;
    while row < area.height
        && let Some(line) = log.lines.get(number)
    {
        row += line_at(app, canvas, area, row, (number, line), skipped);
        (number, skipped) = (number + 1, 0);
    }
}

/// Draws a line, without the first so many of its rows, and gives how many rows it took.
fn line_at(
    app: &App,
    canvas: &mut Canvas<'_>,
    area: Rect,
    row: u16,
    (number, line): (u64, Line<'_>),
    skipped: usize,
) -> u16 {
    if let Kind::Missed(missed) = line.kind {
        let text = format!("({missed} lines came too fast for this; the log has them)");
        canvas.text(area, row, 0, &text, Style::new().fg(Color::Yellow).add_modifier(Modifier::DIM));
        return 1;
    }
    let (width, left) = (usize::from(area.width), usize::from(app.left()));
    let room = if app.wraps() { width * (skipped + usize::from(area.height - row)) + width } else { width + left };
    let mut glyphs = text::glyphs(line.text, room);
    if app.copies() {
        glyphs.iter_mut().for_each(|glyph| glyph.style = Style::new());
    }
    mark(&mut glyphs, app.search(), app.found() == Some(number));
    let rows = if app.wraps() {
        text::rows(&glyphs, area.width)
    } else {
        let mut column = 0;
        let hidden = glyphs.iter().take_while(|glyph| {
            column += usize::from(glyph.width);
            column <= left
        });
        let first = if left == 0 { 0 } else { hidden.count() };
        std::iter::once(first..glyphs.len()).collect()
    };
    let mut drawn = 0;
    for range in rows.into_iter().skip(skipped) {
        if row + drawn >= area.height {
            break;
        }
        let cells = glyphs[range].iter().map(|glyph| (&*glyph.symbol, glyph.width, glyph.style));
        canvas.cells(area, row + drawn, 0, cells);
        drawn += 1;
    }
    drawn.max(1)
}

/// Marks what is searched for.
fn mark(glyphs: &mut [Glyph], search: &str, is_found: bool) {
    if search.is_empty() {
        return;
    }
    let text: String = glyphs.iter().map(|glyph| &*glyph.symbol).collect();
    let style = match is_found {
        true => Style::new().fg(Color::Black).bg(Color::Yellow).add_modifier(Modifier::BOLD | Modifier::REVERSED),
        false => Style::new().add_modifier(Modifier::REVERSED),
    };
    let (mut at, mut byte, mut from) = (0, 0, 0);
    while let Some(found) = text::find(&text[from..], search) {
        let (begin, end) = (from + found.start, from + found.end);
        while at < glyphs.len() && byte < end {
            if byte >= begin {
                glyphs[at].style = glyphs[at].style.patch(style);
            }
            byte += glyphs[at].symbol.len();
            at += 1;
        }
        // Only at the begin of a character it can be cut.
        from = (end..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    }
}

fn detail(app: &App, canvas: &mut Canvas<'_>, area: Rect) {
    let Some((_, shown)) = app.selected() else { return };
    let row = &shown.row;
    let exit = match (&row.signal, row.exit_code) {
        (Some(signal), _) => format!("killed by {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "-".into(),
    };
    let facts = [
        ("state", row.state.clone()),
        ("why", or_dash(row.why.clone())),
        ("says", or_dash(row.status.clone())),
        ("pid", or_dash(row.pid.map(|pid| pid.to_string()))),
        (if row.pid.is_some() { "uptime" } else { "lived" }, lived(shown)),
        ("restarts", row.restarts.to_string()),
        ("last exit", exit),
        ("cpu", or_dash(row.cpu_ms.map(|cpu| format!("{} in all", rounded(Duration::from_millis(cpu)))))),
        ("memory", or_dash(row.rss_bytes.map(memory))),
    ];
    let mut lines: Vec<(String, Style)> = Vec::new();
    for (name, text) in facts {
        let style = if name == "state" { colour_of(&row.state) } else { Style::new() };
        lines.push((format!("{name:9}  {text}"), style));
    }
    for (name, probe) in [("health", &row.readiness), ("liveness", &row.liveness)] {
        lines.extend(probe.as_ref().map(|probe| (format!("{name:9}  {}", answers(probe)), well_or_not(probe))));
    }
    lines.extend(row.metrics.as_ref().map(|sample| (format!("metrics    {}", measured(sample)), Style::new())));
    let own: Vec<&EventRow> = app.events().iter().filter(|event| event.service == row.service).collect();
    lines.push((String::new(), Style::new()));
    let heading = if own.is_empty() {
        "nothing has happened to it since this was opened"
    } else {
        "what happened, the last first"
    };
    lines.push((heading.into(), Style::new().add_modifier(Modifier::DIM)));
    lines.extend(own.iter().rev().map(|event| (format!("{}  {}", time(event), event.text), Style::new())));
    for (at, (text, style)) in (0..area.height).zip(lines.iter().skip(app.scrolled())) {
        canvas.text(area, at, 1, text, *style);
    }
}

/// What a probe says, in words.
fn answers(probe: &ProbeRow) -> String {
    let time = |millis| rounded(Duration::from_millis(millis));
    let mut text = match (probe.ok, probe.failures) {
        (None, _) => "not asked yet".into(),
        (Some(true), _) => "well".into(),
        (Some(false), 1) => "failed".into(),
        (Some(false), failures) => format!("failed {failures} times in a row"),
    };
    if let Some(ago) = probe.ago_ms {
        text += &format!(", {} ago", time(ago));
    }
    if let Some(next) = probe.next_ms {
        text += &format!("; asked in {}", time(next));
    }
    if let Some(said) = &probe.said {
        text += &format!(": {said}");
    }
    text
}

fn well_or_not(probe: &ProbeRow) -> Style {
    match probe.ok {
        Some(true) => colour_of("healthy"),
        Some(false) => colour_of("failed"),
        None => Style::new(),
    }
}

/// A sample, and its age.
fn measured(sample: &MetricsRow) -> String {
    format!("{} ({} ago)", usage(sample), rounded(Duration::from_millis(sample.ago_ms)))
}

/// Hours, minutes and seconds of an event, in UTC as in the logs.
fn time(event: &EventRow) -> &str {
    event.time.get(11..19).unwrap_or(&event.time)
}

fn events(app: &App, canvas: &mut Canvas<'_>, area: Rect) {
    let height = usize::from(area.height);
    let end = app.events().len().saturating_sub(app.scrolled()).max(height.min(app.events().len()));
    let first = end.saturating_sub(height);
    if app.events().is_empty() {
        canvas.text(area, 0, 1, "nothing has happened since this was opened", Style::new().add_modifier(Modifier::DIM));
    }
    for (row, event) in (0..area.height).zip(app.events().iter().skip(first)) {
        let column = canvas.text(area, row, 1, time(event), Style::new().add_modifier(Modifier::DIM));
        let column = canvas.text(area, row, column + 2, &event.service, Style::new().add_modifier(Modifier::BOLD));
        let style = match event.event.as_str() {
            "crashed" | "gave_up" | "unhealthy" | "unkillable" | "log_lost" | "usage_high" => colour_of("failed"),
            "healthy" | "usage_normal" => colour_of("healthy"),
            _ => Style::new(),
        };
        canvas.text(area, row, column + 2, &event.text, style);
    }
}

fn help(app: &App, canvas: &mut Canvas<'_>, area: Rect) {
    for (row, (keys, text)) in (0..area.height).zip(HELP.iter().skip(app.scrolled())) {
        canvas.text(area, row, 1, keys, Style::new().add_modifier(Modifier::BOLD));
        canvas.text(area, row, 18, text, Style::new());
    }
}

fn hint(app: &App, canvas: &mut Canvas<'_>, area: Rect) -> Option<Position> {
    let dim = Style::new().add_modifier(Modifier::DIM);
    match (app.mode(), app.message()) {
        (Mode::Search(typed), _) => {
            // Its end is what is typed at: the beginning goes where there is no room.
            let most = usize::from(area.width).saturating_sub(2);
            let count = typed.chars().count();
            let text: String = typed.chars().skip(count.saturating_sub(most / 2)).collect();
            let column = canvas.text(area, 0, 0, &format!("/{text}"), Style::new());
            return (area.height > 0 && column < area.width).then_some(Position { x: area.x + column, y: area.y });
        }
        (Mode::Confirm, _) => {
            let style = Style::new().add_modifier(Modifier::BOLD);
            canvas.text(area, 0, 0, "Stop all services and the project? y stops, any other key does not", style);
        }
        (Mode::Normal, Some((text, is_bad))) => {
            let style = if is_bad { colour_of("failed") } else { Style::new() };
            canvas.text(area, 0, 0, text, style.add_modifier(Modifier::BOLD));
        }
        (Mode::Normal, None) if app.copies() => {
            canvas.text(area, 0, 0, "at rest, to be selected with the mouse: c goes on, PgUp PgDn scroll", dim);
        }
        (Mode::Normal, None) => {
            let text = "s start  x stop  r restart  / search  c copy  d details  e events  ? keys  q leave";
            canvas.text(area, 0, 0, text, dim);
        }
    }
    None
}

#[cfg(test)]
mod tests;
