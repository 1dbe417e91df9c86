package upgrade_test

import (
	"encoding/json"
	"iter"

	"github.com/enginery/enginery/upgrade"
)

// lines returns events as they are read from a log.
func lines(events []upgrade.Event) iter.Seq2[upgrade.Event, error] {
	return func(yield func(upgrade.Event, error) bool) {
		for _, e := range events {
			line, err := json.Marshal(e)
			var back upgrade.Event
			if err == nil {
				err = json.Unmarshal(line, &back)
			}
			if !yield(back, err) {
				return
			}
		}
	}
}

func all(m *upgrade.Memory) [][2]string {
	var keys [][2]string
	for k, v := range m.All() {
		keys = append(keys, [2]string{k, v})
	}
	return keys
}
