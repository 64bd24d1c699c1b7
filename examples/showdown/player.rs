//! A player: reads the simulator's requests, and answers each by one of the choices that it allows.

use serde::Deserialize;

use super::dice::Dice;

/// Chooses at random, but the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Player(Dice);

/// What the simulator wants to know, as far as a battle of one against one needs it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Request {
    /// The other player has to choose, this one has not.
    wait: bool,
    /// Something has left the field, and another one must take its place.
    force_switch: Vec<bool>,
    active: Vec<Active>,
    side: Side,
}

/// What is on the field, and may do.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Active {
    moves: Vec<Move>,
    trapped: bool,
    can_terastallize: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Move {
    disabled: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Side {
    pokemon: Vec<Pokemon>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pokemon {
    condition: String,
    active: bool,
    reviving: bool,
}

impl Player {
    pub(crate) fn new(dice: Dice) -> Self {
        Player(dice)
    }

    /// The answer to a request; none where none is wanted.
    pub(crate) fn choose(&mut self, request: &str) -> Result<Option<String>, serde_json::Error> {
        let request: Request = serde_json::from_str(request)?;
        if request.wait {
            return Ok(None);
        }
        let bench = request.bench();
        let must_switch = request.force_switch.contains(&true);
        let Some(active) = request.active.first().filter(|_| !must_switch) else {
            return Ok(Some(self.switch(&bench).unwrap_or_else(anything)));
        };
        let wants_to_switch = !active.trapped && self.0.below(6) == 0;
        let choice = wants_to_switch.then(|| self.switch(&bench)).flatten();
        Ok(Some(choice.or_else(|| self.act(active)).unwrap_or_else(anything)))
    }

    fn switch(&mut self, bench: &[usize]) -> Option<String> {
        self.0.pick(bench).map(|place| format!("switch {place}"))
    }

    fn act(&mut self, active: &Active) -> Option<String> {
        let moves = (1..).zip(&active.moves).filter(|(_, each)| !each.disabled);
        let place = self.0.pick(&moves.map(|(place, _)| place).collect::<Vec<u32>>())?;
        let transforms = active.can_terastallize.is_some() && self.0.below(4) == 0;
        Some(format!("move {place}{}", if transforms { " terastallize" } else { "" }))
    }
}

impl Request {
    /// The places of those that can take the place of what is on the field: the living, or the fainted where one is to be revived.
    fn bench(&self) -> Vec<usize> {
        let revives = self.side.pokemon.iter().any(|each| each.active && each.reviving);
        let fits = |each: &Pokemon| !each.active && each.condition.ends_with(" fnt") == revives;
        (1..).zip(&self.side.pokemon).filter(|(_, each)| fits(each)).map(|(place, _)| place).collect()
    }
}

/// The choice that the simulator takes at any time: it chooses itself.
fn anything() -> String {
    "default".to_string()
}
