package upgrade_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/enginery/enginery/upgrade"
)

// model is the controller in plain slices, without a store, events or indexes: what docs/upgrade.md says, and no more.
type model struct {
	settings        upgrade.Settings
	legacy, current string
	vats            map[string]*modelVat
	requests, ready []string // vats in order

	rollout  *upgrade.Rollout
	steps    []upgrade.Step
	upgradeC int64 // carried over
	deliverC int64
	height   int64

	host *hashHost
	log  []string
}

type modelVat struct {
	upgrade.Vat // of which these are used: ID, Version, LegacyOnly, Paused, Suspended, Terminated, Request, Cause, Failure, Refused
	queue       []upgrade.Delivery
	aside       []upgrade.Delivery
}

func (v *modelVat) waiting() int { return len(v.queue) + len(v.aside) }

func (v *modelVat) takes() bool {
	return !v.Terminated && !v.Paused && !v.Suspended && v.Request == nil
}

func (v *modelVat) bytes() (n int64) {
	for _, d := range v.queue {
		n += int64(len(d.Payload) + len(d.Key))
	}
	return n
}

func newModel(host *hashHost, version string, s upgrade.Settings) *model {
	return &model{settings: s, legacy: version, current: version, vats: map[string]*modelVat{}, host: host}
}

// sync puts a vat into the orders where it belongs, and takes it out of others.
func (m *model) sync(v *modelVat) {
	for _, o := range []struct {
		list  *[]string
		wants bool
	}{{&m.requests, v.Request != nil}, {&m.ready, (v.takes() || v.Terminated) && v.waiting() > 0}} {
		if i := slices.Index(*o.list, v.ID); i < 0 && o.wants {
			*o.list = append(*o.list, v.ID)
		} else if i >= 0 && !o.wants {
			*o.list = slices.Delete(*o.list, i, i+1)
		}
	}
}

func (m *model) holds(version string) (vats []string) {
	for id, v := range m.vats {
		if v.Version == version && !v.Suspended && !v.Terminated {
			vats = append(vats, id)
		}
	}
	return vats
}

func (m *model) going() bool {
	return m.rollout != nil && m.rollout.State != upgrade.Aborted && m.rollout.State != upgrade.Done
}

func (m *model) changeable(id string) *modelVat {
	if v := m.vats[id]; v != nil && !v.Terminated && !v.LegacyOnly {
		return v
	}
	return nil
}

// demand has a vat upgraded that is suspended and not paused, and for which something waits.
func (m *model) demand(v *modelVat) {
	if v.Suspended && !v.Paused && !v.Terminated && v.Request == nil && v.waiting() > 0 {
		v.Request, v.Cause = &upgrade.Request{}, upgrade.ByDelivery
	}
	m.sync(v)
}

// do does an operation, and reports whether it is done and not refused. An action of a delivery is in the log.
func (m *model) do(o op) bool {
	v := m.changeable(o.vat)
	switch o.kind {
	case "add":
		if m.vats[o.vat] != nil {
			return false
		}
		version := m.current
		if o.flag {
			version = m.legacy
		}
		m.vats[o.vat] = &modelVat{Vat: upgrade.Vat{ID: o.vat, Version: version, LegacyOnly: o.flag}}
	case "set":
		m.settings = o.settings
	case "adopt":
		legacy := m.current
		if o.version == m.current || m.going() {
			return false
		}
		if o.version != m.legacy && m.legacy != m.current && len(m.holds(m.legacy)) > 0 {
			if len(m.holds(m.current)) > 0 {
				return false
			}
			legacy = m.legacy
		}
		if !m.host.has(o.version) {
			return false
		}
		m.legacy, m.current = legacy, o.version
	case "retire":
		if o.version == m.current || o.version != m.legacy || len(m.holds(m.legacy)) > 0 {
			return false
		}
		m.legacy = m.current
	case "pause":
		if v == nil || v.Paused {
			return false
		}
		v.Paused = true
		m.sync(v)
	case "resume":
		if v == nil || !v.Paused {
			return false
		}
		v.Paused = false
		m.demand(v)
	case "suspend":
		if v == nil || v.Suspended {
			return false
		}
		v.Suspended = true
		m.forget(v)
		m.demand(v)
	case "roll-back":
		if v == nil || !v.Suspended || v.Request != nil || v.Version != m.legacy && v.Version != m.current {
			return false
		}
		v.Suspended, v.Paused = false, false
		m.sync(v)
	case "request":
		if v == nil {
			return false
		}
		v.Request, v.Cause = &upgrade.Request{Bundle: o.bundle}, upgrade.ByRequest
		m.sync(v)
	case "terminate":
		if v = m.vats[o.vat]; v == nil || v.Terminated {
			return false
		}
		m.terminate(v)
	case "admit":
		return m.admit(o)
	case "start":
		if m.going() || o.version != m.current || !m.valid(o.steps) {
			return false
		}
		r := upgrade.Rollout{ID: 1, Version: o.version, State: upgrade.Running, MaxFailures: o.n, OnFailure: cmp.Or(o.policy, m.settings.OnFailure), Started: m.height}
		if m.rollout != nil {
			r.ID = m.rollout.ID + 1
		}
		if o.flag {
			r.State = upgrade.Paused
		}
		m.rollout, m.steps = &r, slices.Clone(o.steps)
		r.Steps = int64(len(o.steps))
		m.rollout = &r
	case "extend":
		if !m.going() || !m.valid(o.steps) {
			return false
		}
		m.steps = append(m.steps, o.steps...)
		m.rollout.Steps += int64(len(o.steps))
	case "pause-rollout":
		if !m.going() || m.rollout.State == upgrade.Paused {
			return false
		}
		m.rollout.State = upgrade.Paused
	case "resume-rollout":
		if !m.going() || m.rollout.State == upgrade.Running {
			return false
		}
		m.rollout.State, m.rollout.Strikes = upgrade.Running, 0
	case "abort-rollout":
		if !m.going() {
			return false
		}
		m.rollout.State, m.rollout.Ended = upgrade.Aborted, m.height
	case "end":
		m.end(o.n)
	}
	return true
}

func (m *model) forget(v *modelVat) {
	v.aside = slices.DeleteFunc(v.aside, func(d upgrade.Delivery) bool { return d.Kind == upgrade.BringOutYourDead })
}

func (m *model) terminate(v *modelVat) {
	v.Terminated, v.Paused, v.Suspended, v.Request = true, false, false, nil
	m.sync(v)
}

func (m *model) valid(steps []upgrade.Step) bool {
	before := map[string]bool{}
	for _, s := range steps {
		planned := slices.ContainsFunc(m.steps, func(o upgrade.Step) bool { return m.going() && o.Vat == s.Vat })
		if m.changeable(s.Vat) == nil || planned || before[s.Vat] {
			return false
		}
		for _, d := range s.After {
			later := !before[d] && slices.ContainsFunc(steps, func(o upgrade.Step) bool { return o.Vat == d })
			if v := m.vats[d]; v == nil || v.Terminated || later {
				return false
			}
		}
		before[s.Vat] = true
	}
	return true
}

func (m *model) admit(o op) bool {
	v := m.vats[o.vat]
	if v == nil {
		return false
	}
	d := o.delivery
	say := func(a upgrade.Action) bool { m.log = append(m.log, string(a)); return true }
	inOrder := slices.Contains([]upgrade.Kind{upgrade.Message, upgrade.Pipelined, upgrade.Notify}, d.Kind)
	switch {
	case v.takes() && v.waiting() == 0:
		return say(upgrade.Deliver)
	case v.Terminated && (d.Kind == upgrade.Message || d.Kind == upgrade.Pipelined):
		return say(upgrade.Refuse)
	case v.Terminated, v.Suspended && d.Kind == upgrade.BringOutYourDead:
		return say(upgrade.Drop)
	case inOrder:
		total := 0
		for _, o := range m.vats {
			total += len(o.queue)
		}
		l := m.settings.Limits
		if d.Kind != upgrade.Notify && (int64(len(v.queue)) >= l.Messages || v.bytes()+int64(len(d.Payload)+len(d.Key)) > l.Bytes || int64(total) >= l.Total) {
			v.Refused++
			return say(upgrade.Refuse)
		}
		v.queue = append(v.queue, d)
		m.demand(v)
		return say(upgrade.Queue)
	}
	if d.Kind == upgrade.BringOutYourDead {
		d.Key = ""
	}
	v.aside = slices.DeleteFunc(v.aside, func(o upgrade.Delivery) bool { return o.Kind == d.Kind && o.Key == d.Key })
	v.aside = append(v.aside, d)
	order := []upgrade.Kind{upgrade.ChangeVatOptions, upgrade.DropExports, upgrade.RetireExports, upgrade.RetireImports, upgrade.BringOutYourDead}
	slices.SortFunc(v.aside, func(a, b upgrade.Delivery) int {
		return cmp.Or(slices.Index(order, a.Kind)-slices.Index(order, b.Kind), strings.Compare(a.Key, b.Key))
	})
	m.demand(v)
	return say(upgrade.SetAside)
}

func (m *model) end(used int64) {
	b := m.settings.Budget
	share := b.Block
	if room := min(b.Limit-used, b.Limit); room <= 0 {
		share = b.Full
	} else {
		share.UpgradeComputrons = b.Full.UpgradeComputrons + (b.Block.UpgradeComputrons-b.Full.UpgradeComputrons)*room/b.Limit
		share.DeliveryComputrons = b.Full.DeliveryComputrons + (b.Block.DeliveryComputrons-b.Full.DeliveryComputrons)*room/b.Limit
	}
	running := m.rollout != nil && m.rollout.State == upgrade.Running

	left, tried := share.UpgradeComputrons+m.upgradeC, int64(0)
	saved, first := int64(0), true // of the requests, or of the steps
	attempt := func(v *modelVat, expected int64, bundle string, cause upgrade.Cause, policy upgrade.Policy) bool {
		if tried >= share.Upgrades || expected > left {
			if share.Upgrades == 0 {
				saved = max(0, m.upgradeC)
			} else if first && expected > left {
				saved = expected
			}
			return false
		}
		tried++
		first = false
		o := m.host.outcomeOfUpgrade(m.height, v.ID, m.current, bundle)
		m.log = append(m.log, fmt.Sprintf("upgrade %s %s %s %s %s %v", v.ID, v.Version, m.current, bundle, cause, v.Suspended))
		left -= b.Start + o.Computrons
		if cause != upgrade.ByRollout {
			v.Request = nil
		}
		if o.OK {
			if v.Suspended {
				v.Suspended, v.Paused = false, false
			}
			v.Version, v.Failure = m.current, nil
			m.forget(v)
		} else {
			f := &upgrade.Failure{Attempts: 1, Computrons: b.Start + o.Computrons}
			if v.Failure != nil {
				f.Attempts += v.Failure.Attempts
			}
			if v.Failure = f; v.Suspended || policy == upgrade.Suspend {
				v.Suspended, v.Paused = true, true
				m.forget(v)
			}
		}
		if o.Terminated {
			m.terminate(v)
		}
		m.sync(v)
		if cause == upgrade.ByRollout {
			m.steps = m.steps[1:]
			if o.OK {
				m.rollout.Upgraded++
			} else {
				m.rollout.Failed++
				if m.rollout.Strikes++; m.rollout.Strikes > m.rollout.MaxFailures {
					m.rollout.State = upgrade.Held
				}
			}
		}
		return true
	}
	expected := func(v *modelVat, computrons int64) int64 {
		if v.Failure != nil && v.Failure.Computrons > b.Start+computrons {
			return v.Failure.Computrons
		}
		return b.Start + computrons
	}
	more := true
	for more && len(m.requests) > 0 {
		v := m.vats[m.requests[0]]
		more = attempt(v, expected(v, 0), v.Request.Bundle, v.Cause, m.settings.OnFailure)
	}
	first = true
	for more && m.rollout != nil && m.rollout.State == upgrade.Running {
		if len(m.steps) == 0 {
			m.rollout.State, m.rollout.Ended = upgrade.Done, m.height
			break
		}
		step := m.steps[0]
		v := m.vats[step.Vat]
		skip := v.Terminated || v.Version == m.current && !v.Suspended && step.Bundle == ""
		for _, d := range step.After {
			before := m.vats[d]
			skip = skip || before.Version != m.current || before.Terminated || before.Suspended || before.Request != nil
		}
		if skip {
			m.steps = m.steps[1:]
			m.rollout.Skipped++
			continue
		}
		more = attempt(v, expected(v, step.Computrons), step.Bundle, upgrade.ByRollout, m.rollout.OnFailure)
	}
	m.upgradeC = min(left, saved)

	left = share.DeliveryComputrons + m.deliverC
	turn := int64(0)
	for range share.Deliveries {
		if len(m.ready) == 0 {
			break
		}
		v := m.vats[m.ready[0]]
		if !v.Terminated && left <= 0 {
			break
		}
		var d upgrade.Delivery
		if len(v.aside) > 0 {
			d, v.aside = v.aside[0], v.aside[1:]
		} else {
			d, v.queue = v.queue[0], v.queue[1:]
		}
		turn++
		o := upgrade.Outcome{}
		if v.Terminated {
			m.log = append(m.log, fmt.Sprintf("discard %s %s %s %s", v.ID, d.Kind, d.Key, d.Payload))
		} else {
			m.log = append(m.log, fmt.Sprintf("deliver %s %s %s %s", v.ID, d.Kind, d.Key, d.Payload))
			o = m.host.outcomeOfDelivery(m.height, v.ID, d)
			left -= o.Computrons
		}
		if turn == m.settings.Limits.Turn {
			m.ready = m.ready[1:] // to the end
		}
		if o.Terminated {
			v.Terminated = true
		}
		if m.sync(v); len(m.ready) == 0 || m.ready[0] != v.ID || turn == m.settings.Limits.Turn {
			turn = 0
		}
	}
	m.deliverC = min(left, 0)
	if running {
		m.rollout.Blocks++
	}
}
