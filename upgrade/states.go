package upgrade

import (
	"fmt"
	"slices"
)

// Transition is a change of the state of a vat or a rollout, and the event that makes it.
type Transition[S ~string] struct {
	From, To S
	By       EventType
}

// Transitions are all changes of a vat's state that there are. An event that would make another is a defect, and an error.
var Transitions = []Transition[State]{
	{Active, Upgrading, UpgradeRequested},
	{Active, Active, VatUpgraded}, // by a rollout
	{Active, Active, UpgradeFailed},
	{Active, Suspended, UpgradeFailed},
	{Active, Suspended, VatSuspended},
	{Active, Terminated, VatTerminated},
	{Upgrading, Active, VatUpgraded},
	{Upgrading, Active, UpgradeFailed}, // rolled back
	{Upgrading, Suspended, UpgradeFailed},
	{Upgrading, Terminated, VatTerminated},
	{Suspended, Upgrading, UpgradeRequested},
	{Suspended, Active, VatUpgraded}, // by a rollout
	{Suspended, Suspended, UpgradeFailed},
	{Suspended, Active, VatRolledBack},
	{Suspended, Terminated, VatTerminated},
}

// RolloutTransitions are all changes of a rollout's state that there are.
var RolloutTransitions = []Transition[RolloutState]{
	{Running, Paused, RolloutPaused},
	{Running, Held, RolloutHeld},
	{Running, Done, RolloutDone},
	{Running, Aborted, RolloutAborted},
	{Paused, Running, RolloutResumed},
	{Paused, Aborted, RolloutAborted},
	{Held, Running, RolloutResumed},
	{Held, Paused, RolloutPaused},
	{Held, Aborted, RolloutAborted},
}

// checkTransition returns an error if there is no such transition. Events that change other things only leave the state as it is.
func checkTransition[S ~string](all []Transition[S], what string, from, to S, by EventType) error {
	if from == to && !slices.ContainsFunc(all, func(t Transition[S]) bool { return t.By == by && t.From == t.To }) {
		return nil
	}
	if !slices.Contains(all, Transition[S]{from, to, by}) {
		return fmt.Errorf("%s would make %s, which is %s, %s", by, what, from, to)
	}
	return nil
}
