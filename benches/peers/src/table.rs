//! The table that people read.

use std::fmt::Write;

use pm_cli::bench::table::machine;

use crate::cli::Args;
use crate::rival::Rival;
use crate::row::{CROWD, Cpu, Row, SIZES};

/// For each size the medians of all rounds, each beside those of pm over shared memory.
pub(crate) fn table(args: &Args, rivals: &[Rival], measured: &[(Rival, Row)]) -> String {
    let seconds = args.seconds.as_secs_f64();
    let mut text = format!("{}\nmedians of rounds: {}, {seconds} s for each figure\n\n", machine(), args.rounds);
    let crowd = format!("k/s at {CROWD}");
    let head = args.placement.to_string();
    let _ = writeln!(
        text,
        "{head:<27}{:>7} {:>10} {:>10} {crowd:>10}  {:>8} {:>9}  {:>9} {:>9}",
        "bytes", "p50 µs", "p99 µs", "p50 / pm", "rate / pm", "cpu alone", "cpu crowd"
    );
    for bytes in SIZES {
        let ours = medians(Rival::Shm, bytes, measured);
        for &rival in rivals {
            let Some(row) = medians(rival, bytes, measured) else { continue };
            let _ = write!(
                text,
                "{:<27}{bytes:>7} {:>10.2} {:>10.2} {:>10.1}",
                rival.title(),
                row.p50,
                row.p99,
                row.rate / 1000.0
            );
            let _ = match ours {
                Some(ours) => write!(text, "  {:>8.2} {:>9.3}", row.p50 / ours.p50, row.rate / ours.rate),
                None => write!(text, "  {:>8} {:>9}", "", ""),
            };
            let _ = match row.cpu {
                Some(cpu) => writeln!(text, "  {:>9.2} {:>9.2}", cpu.cpu_alone, cpu.cpu_crowd),
                None => writeln!(text),
            };
        }
    }
    text + "\np50, p99: round trips, one at a time; k/s: thousands a second; / pm: beside pm over shm in this run; cpu: µs of \
            processor time that the manager takes for a query, one at a time and in a crowd\n"
}

/// The median of each figure by itself.
fn medians(rival: Rival, bytes: usize, measured: &[(Rival, Row)]) -> Option<Row> {
    let rows = || measured.iter().filter(|(of, row)| *of == rival && row.bytes == bytes).map(|(_, row)| *row);
    let cpus = || rows().filter_map(|row| row.cpu);
    Some(Row {
        bytes,
        p50: median(rows().map(|row| row.p50))?,
        p99: median(rows().map(|row| row.p99))?,
        rate: median(rows().map(|row| row.rate))?,
        cpu: median(cpus().map(|cpu| cpu.cpu_alone))
            .zip(median(cpus().map(|cpu| cpu.cpu_crowd)))
            .map(|(cpu_alone, cpu_crowd)| Cpu { cpu_alone, cpu_crowd }),
    })
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
