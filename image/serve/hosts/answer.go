package hosts

import "time"

// Wait is what a PC is told that may not boot its disk and may not be reimaged:
// to show the reason on its console, and to ask again after a while.
const Wait Decision = "wait"

// Answer is what a PC is told that asks what to boot.
type Answer struct {
	// Host is the host's name; empty for a card that is no host's.
	Host     string
	Decision Decision // Local, Remote or Wait
	// Reason is one sentence for people, without a line end.
	Reason string
	// Token, with Remote, lets this boot of this PC fetch its manifest and
	// report. It is secret.
	Token string
	// Again is, with Wait, when to ask again.
	Again time.Duration
}
