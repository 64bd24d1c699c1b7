//! Teams that wish to play, and what is wrong with them.

use serde::{Deserialize, Serialize};

/// A team for a format, packed: fields between `|`, members between `]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) format: String,
    pub(crate) team: String,
}

/// None for a team that may play.
pub(crate) type Problems = Option<Vec<String>>;

/// Of each format one that may play, where there are two.
const TEAMS: [(&str, &str); 6] = [
    (
        "gen1ou",
        "Tauros||||bodyslam,hyperbeam,earthquake,blizzard|||||||]Starmie||||surf,blizzard,thunderwave,recover|||||||",
    ),
    ("gen1ou", "Mewtwo||||psychic,spore,recover,amnesia|||||||"),
    ("gen9ou", "Gholdengo||airballoon|goodasgold|makeitrain,shadowball,nastyplot,recover|Timid|,,,252,4,252|||||"),
    ("gen9ou", "Pikachu|||levitate|thunderbolt,spore||1,,,,,|||||]Pikachu|||static|thunderbolt||1,,,,,|||||"),
    ("gen9ou", ""),
    ("gen9ubers", "Koraidon||choicescarf|orichalcumpulse|collisioncourse,flareblitz,uturn|Jolly|,252,,,4,252|||||"),
];

/// Some that may play, and some that may not.
pub(crate) fn entries() -> Vec<Entry> {
    TEAMS.map(|(format, team)| Entry { format: format.to_string(), team: team.to_string() }).into()
}
