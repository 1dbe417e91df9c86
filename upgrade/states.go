package upgrade

// Transition is a change of a vat's state, and the event that makes it.
type Transition struct {
	From, To State
	By       EventType
}

// Transitions are all changes of a vat's state that there are. An event that would make another is refused as a defect.
var Transitions = []Transition{
	{Active, Upgrading, UpgradeRequested},
	{Active, Suspended, UpgradeFailed},
	{Active, Suspended, VatSuspended},
	{Active, Terminated, VatTerminated},
	{Upgrading, Active, VatUpgraded},
	{Upgrading, Active, UpgradeFailed}, // rolled back
	{Upgrading, Suspended, UpgradeFailed},
	{Upgrading, Terminated, VatTerminated},
	{Suspended, Upgrading, UpgradeRequested},
	{Suspended, Active, VatUpgraded}, // by a rollout
	{Suspended, Active, VatRolledBack},
	{Suspended, Terminated, VatTerminated},
}
