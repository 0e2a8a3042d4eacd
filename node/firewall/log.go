package firewall

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"

	"sigs.k8s.io/knftables"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/policy"
)

// LogPrefix begins the text that the kernel gives with a dropped packet; the id
// of what decided follows.
const LogPrefix = "hauberk:"

// ReplySuffix ends that text for a packet that is a reply: the flow that was
// denied goes the other way.
const ReplySuffix = "<"

// logRate bounds what each rule tells. Only telling is limited: the drop is a
// rule of its own.
const logRate = "limit rate 50/second burst 100 packets"

// Drop is what drops a packet: the direction and the words of the flow record.
type Drop struct {
	Direction policy.Direction
	flow.Decision
}

// id is short, because the kernel carries it with each packet, and the same in
// every process, because rules outlive the one that wrote them.
func (d *Drop) id() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d|%q|%q|%q|%q|%q", d.Direction, d.Tier, d.Policy, d.Rule, d.Selecting, d.Reason))
	return hex.EncodeToString(sum[:6])
}

// Dropped is what the id of a logged packet means; false when no rule of this
// process has it. The rules of before the last change are remembered, because
// their packets may still be on the way.
func (f *Firewall) Dropped(id string) (Drop, bool) {
	known := f.drops.Load()
	if known == nil {
		return Drop{}, false
	}
	d, ok := (*known)[id]
	return d, ok
}

// publish makes the ids of the next table known beside those of the current.
func (f *Firewall) publish(next *table) {
	all := make(map[string]Drop, len(next.drops))
	if f.current != nil {
		maps.Copy(all, f.current.drops)
	}
	maps.Copy(all, next.drops)
	f.drops.Store(&all)
}

// LogProblem says why the kernel does not tell of its drops; empty when it does.
func (f *Firewall) LogProblem() string {
	if p := f.logProblem.Load(); p != nil {
		return *p
	}
	return "the kernel has not been programmed yet"
}

// canLog asks the kernel whether it can log to a group. Nothing is changed: a
// transaction with rules that it can't take would leave the node without policy.
func (f *Firewall) canLog(ctx context.Context) bool {
	tx := f.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Chain{Name: "log-probe"})
	tx.Add(&knftables.Rule{Chain: "log-probe", Rule: fmt.Sprintf("%s log prefix %q group %d", logRate, LogPrefix, names.NFLogGroup)})
	err := f.nft.Check(ctx, tx)
	problem := ""
	if err != nil {
		problem = fmt.Sprintf("the kernel can't log packets (modules nft_log, nft_limit and nfnetlink_log): %v", err)
		f.log.Warn("drops of the kernel are not told of", "error", err)
	}
	f.logProblem.Store(&problem)
	return err == nil
}
