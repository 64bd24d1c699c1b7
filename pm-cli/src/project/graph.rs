//! `pm graph`: who needs whom.

use std::fmt::Write;

use pm::service::Service;

/// How it is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A line for each service.
    Text,
    /// For Graphviz.
    Dot,
    /// For Mermaid.
    Mermaid,
    /// A JSON object for each service.
    Json,
}

/// The graph as text.
pub fn draw(services: &[Service], form: Form) -> String {
    let mut text = String::new();
    // Into a String nothing fails.
    let _ = match form {
        Form::Text => services.iter().try_for_each(|one| {
            let needs: Vec<String> = one.rules().needs.iter().map(ToString::to_string).collect();
            match needs.is_empty() {
                true => writeln!(text, "{}", one.name()),
                false => writeln!(text, "{} needs {}", one.name(), needs.join(", ")),
            }
        }),
        Form::Dot => {
            let lines = services.iter().try_for_each(|one| {
                writeln!(text, "  {:?};", one.name())?;
                let edge = |need: &pm::service::Need| {
                    format!("  {:?} -> {:?} [label=\"{}\"];\n", one.name(), need.on, need.condition)
                };
                text.push_str(&one.rules().needs.iter().map(edge).collect::<String>());
                Ok(())
            });
            text = format!("digraph services {{\n{text}}}\n");
            lines
        }
        Form::Mermaid => {
            text.push_str("graph LR\n");
            let number = |name: &str| services.iter().position(|one| one.name() == name).unwrap_or_default();
            services.iter().enumerate().try_for_each(|(at, one)| {
                // Names may hold what Mermaid takes for its own.
                writeln!(text, "  s{at}[\"{}\"]", one.name())?;
                one.rules()
                    .needs
                    .iter()
                    .try_for_each(|need| writeln!(text, "  s{at} -- {} --> s{}", need.condition, number(&need.on)))
            })
        }
        Form::Json => services.iter().try_for_each(|one| {
            let need = |need: &pm::service::Need| {
                serde_json::json!({ "service": need.on, "condition": need.condition.name(), "restart": need.restart })
            };
            let needs: Vec<_> = one.rules().needs.iter().map(need).collect();
            writeln!(text, "{}", serde_json::json!({ "service": one.name(), "needs": needs }))
        }),
    };
    text
}

#[cfg(test)]
mod tests {
    use pm::Spec;
    use pm::service::Condition;

    use super::*;

    #[test]
    fn each_form() {
        let named = |name: &str| Service::new(name, Spec::program("true").build().unwrap());
        let services = [named("db").build().unwrap(), named("api").needs("db", Condition::Started).build().unwrap()];
        assert_eq!(draw(&services, Form::Text), "db\napi needs db (started)\n");
        let dot = "digraph services {\n  \"db\";\n  \"api\";\n  \"api\" -> \"db\" [label=\"started\"];\n}\n";
        assert_eq!(draw(&services, Form::Dot), dot);
        assert_eq!(draw(&services, Form::Mermaid), "graph LR\n  s0[\"db\"]\n  s1[\"api\"]\n  s1 -- started --> s0\n");
        let json = draw(&services, Form::Json);
        assert!(json.contains(r#"{"needs":[{"condition":"started","restart":false,"service":"db"}],"service":"api"}"#));
    }
}
