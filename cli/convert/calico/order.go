package calico

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
)

// The orders of Calico that are ours too.
const (
	orderNetworkPolicies = 1000       // Kubernetes NetworkPolicies in the tier "default"
	orderKubeAdmin       = 1000       // of tiers
	orderDefault         = 1_000_000  //
	orderKubeBaseline    = 10_000_000 //
	orderLastTier        = 100_000_000

	// maxOrder leaves room beyond it for as many policies as there may be.
	maxOrder = 2_000_000_000
)

// builtIn are Calico's own tiers with what they are here.
var builtIn = map[string]float64{
	"default": orderDefault, "kube-admin": orderKubeAdmin, "kube-baseline": orderKubeBaseline,
	"adminnetworkpolicy": orderKubeAdmin, "baselineadminnetworkpolicy": orderKubeBaseline,
}

// tier is a tier of Calico; built-in ones become no object.
type tier struct {
	from   *manifest.Object
	order  float64
	action v1alpha1.RuleAction
	ours   bool
}

func (c *converter) tier(o *manifest.Object) *tier {
	var object tierObject
	at := manifest.At{Object: o, Report: c.report}
	if !o.Decode(&object, c.report) {
		return nil
	}
	t := &tier{from: o, order: math.Inf(1), action: "Deny", ours: true}
	if object.Spec.Order != nil {
		t.order = *object.Spec.Order
	}
	switch a := object.Spec.DefaultAction; a {
	case "", "Deny":
	case "Pass":
		t.action = "Pass"
	default:
		at.In("spec.defaultAction").Error("%q is neither Deny nor Pass", a)
	}
	if order, ok := builtIn[o.Meta.Name]; ok {
		t.ours = false
		if o.Meta.Name == "default" && (t.action != "Deny" || object.Spec.Order != nil && t.order != order) {
			at.In("spec").Error("the tier default stands at order %v here and denies: give its policies a tier of their own", order)
		}
		if o.Meta.Name != "default" && object.Spec.Order != nil && t.order != order {
			at.In("spec.order").Error("this tier stands at order %v here", order)
		}
		at.Note("left out: the tier is built in")
	}
	return t
}

// tierObjects gives tiers whole numbers as orders that keep their sequence, that
// of the built-in tiers too.
func (c *converter) tierObjects(tiers []*tier) []manifest.Converted {
	tiers = slices.DeleteFunc(tiers, func(t *tier) bool { return !t.ours })
	slices.SortStableFunc(tiers, func(a, b *tier) int {
		return cmp.Or(cmp.Compare(a.order, b.order), strings.Compare(a.from.Meta.Name, b.from.Meta.Name))
	})
	orders := make([]float64, len(tiers))
	for i, t := range tiers {
		orders[i] = min(t.order, orderLastTier)
	}
	numbers := orders
	if !wholeNumbers(orders, 0, orderLastTier) {
		numbers = renumber(orders, []float64{-1, orderKubeAdmin, orderDefault, orderKubeBaseline, orderLastTier + 1})
	}
	var out []manifest.Converted
	for i, t := range tiers {
		at := manifest.At{Object: t.from, Report: c.report}
		if numbers[i] != t.order {
			at.In("spec.order").Note("%v becomes %v: orders are whole numbers here, their sequence is kept", t.order, numbers[i])
		}
		out = append(out, manifest.Converted{From: []*manifest.Object{t.from}, Object: &v1alpha1.Tier{
			TypeMeta: manifest.Type("Tier"), ObjectMeta: meta(at, t.from.Meta.Name),
			Spec: v1alpha1.TierSpec{Order: int32(numbers[i]), DefaultAction: t.action},
		}})
	}
	return out
}

// wholeNumbers reports whether the orders can stay as they are.
func wholeNumbers(orders []float64, low, high float64) bool {
	return !slices.ContainsFunc(orders, func(o float64) bool { return o != math.Trunc(o) || o < low || o > high })
}

// renumber gives sorted orders different whole numbers in the same sequence.
// What stands before one of the fences, or at it, stays before it.
func renumber(orders, fences []float64) []float64 {
	out := make([]float64, len(orders))
	part := func(o float64) int { // the fence that it stands before
		return slices.IndexFunc(fences, func(f float64) bool { return o <= f })
	}
	previous := math.Inf(-1)
	for i, o := range orders {
		low := previous + 1
		if p := part(o); p > 0 {
			low = max(low, fences[p-1]+1)
		} else if p < 0 && len(fences) > 0 {
			low = max(low, fences[len(fences)-1]+1)
		}
		previous = max(math.Ceil(o), low)
		out[i] = previous
	}
	next := math.Inf(1)
	for i := len(orders) - 1; i >= 0; i-- {
		if p := part(orders[i]); p >= 0 {
			next = min(next, fences[p])
		}
		out[i] = min(out[i], next-1)
		next = out[i]
	}
	return out
}

// item is a part with what orders it.
type item struct {
	policy *policy
	part   *part
	place  int
	order  float64
}

// policyObjects gives the policies of each tier orders that make the sequence of
// Calico: by order, then by name. Ours of one order go by namespace first.
func (c *converter) policyObjects(policies []*policy) []manifest.Converted {
	byTier := map[string][]item{}
	var names []string
	for _, p := range policies {
		name := p.spec.Tier
		if name == "" {
			name = "default"
		}
		if byTier[name] == nil {
			names = append(names, name)
		}
		for i := range p.parts {
			order := math.Inf(1)
			if p.spec.Order != nil {
				order = *p.spec.Order
			}
			byTier[name] = append(byTier[name], item{policy: p, part: &p.parts[i], place: i, order: order})
		}
	}
	var out []manifest.Converted
	for _, name := range names {
		items := byTier[name]
		slices.SortStableFunc(items, func(a, b item) int {
			return cmp.Or(cmp.Compare(a.order, b.order), strings.Compare(a.policy.from.Meta.Name, b.policy.from.Meta.Name),
				strings.Compare(a.policy.namespace(), b.policy.namespace()), cmp.Compare(a.place, b.place))
		})
		numbers := orderItems(items, name == "default")
		for i, it := range items {
			at := manifest.At{Object: it.policy.from, Report: c.report}
			var order *int32
			if !math.IsInf(numbers[i], 1) {
				n := int32(numbers[i])
				order = &n
			}
			if numbers[i] != it.order {
				at.In("spec.order").Note("%s becomes order %v: with orders that are whole numbers, and equal ones sorted by name, this keeps the sequence", it.part.name, numbers[i])
			}
			out = append(out, it.policy.object(at, it.part, order))
		}
	}
	return out
}

// orderItems is the orders of sorted items: their own where that makes the same
// sequence.
func orderItems(items []item, isDefault bool) []float64 {
	orders := make([]float64, len(items))
	keep := true
	for i := range items {
		o := items[i].order
		orders[i] = o
		whole := math.IsInf(o, 1) || o == math.Trunc(o) && math.Abs(o) <= math.MaxInt32
		// Calico's policies of order 1000 come before NetworkPolicies.
		keep = keep && whole && !(isDefault && o == orderNetworkPolicies)
		if i > 0 && orders[i-1] == o {
			keep = keep && ourSequence(&items[i-1], &items[i])
		}
	}
	if keep {
		return orders
	}
	// Those without an order come after the others.
	last := 0.0
	for _, o := range orders {
		if !math.IsInf(o, 1) {
			last = max(last, math.Ceil(o))
		}
	}
	finite := slices.Clone(orders)
	for i := range finite {
		if math.IsInf(finite[i], 1) {
			finite[i] = max(last, orderNetworkPolicies) + 1
		}
		finite[i] = min(max(finite[i], -maxOrder), maxOrder)
	}
	fences := []float64{}
	if isDefault {
		fences = append(fences, orderNetworkPolicies)
	}
	return renumber(finite, fences)
}

// ourSequence reports whether a comes before b where both have one order.
func ourSequence(a, b *item) bool {
	return cmp.Or(strings.Compare(a.policy.namespace(), b.policy.namespace()), strings.Compare(a.part.name, b.part.name)) < 0
}
