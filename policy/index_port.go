package policy

import (
	"cmp"
	"slices"
)

// mostRanges is how many different ranges of ports of one protocol are looked
// up; the rules of more are tried with every port.
const mostRanges = 64

// portColumn files rules by protocol and destination port.
type portColumn struct {
	used   bool
	any    dense
	values map[uint32]uint32 // by protocol and port: see portKey
	whole  map[Protocol]uint32
	names  map[portName]uint32
	// borders begin the pieces into which ranges cut the ports; each piece has the
	// list of the ranges that cover it.
	borders []border
}

type border struct{ key, list uint32 }

type portName struct {
	protocol Protocol
	name     string
}

func portKey(p Protocol, port uint16) uint32 { return uint32(p)<<16 | uint32(port) }

func (c *portColumn) find(q *search, v *view) {
	if !c.used {
		return
	}
	f, flow := q.column(&c.any), v.flow
	f.add(c.whole[flow.Protocol])
	key := portKey(flow.Protocol, flow.Port)
	f.add(c.values[key])
	if i, ok := slices.BinarySearchFunc(c.borders, key, func(b border, key uint32) int { return cmp.Compare(b.key, key) }); ok {
		f.add(c.borders[i].list)
	} else if i > 0 {
		f.add(c.borders[i-1].list)
	}
	if w := flow.Destination.Workload; w != nil && len(c.names) > 0 {
		for i := range w.NamedPorts {
			if p := &w.NamedPorts[i]; p.Protocol == flow.Protocol && p.Port == flow.Port {
				f.add(c.names[portName{p.Protocol, p.Name}])
			}
		}
	}
	q.keep()
}

type portRange struct{ first, last uint16 }

type portBuilder struct {
	portColumn
	ranges map[Protocol]map[portRange]*[]int32 // rules of each range
}

func newPortBuilder(n int) portBuilder {
	return portBuilder{
		portColumn: portColumn{any: newDense(n), values: map[uint32]uint32{}, whole: map[Protocol]uint32{}, names: map[portName]uint32{}},
		ranges:     map[Protocol]map[portRange]*[]int32{},
	}
}

func (b *portBuilder) add(all *builder, number int, ports []PortMatch) {
	if len(ports) == 0 {
		b.any.set(number)
		return
	}
	for i := range ports {
		switch m := &ports[i]; {
		case m.Name != "":
			fileUnder(all, b.names, portName{m.Protocol, m.Name}, number)
		case m.EndPort != 0 && m.EndPort != m.Port:
			b.addRange(all, m, number)
		case m.Port != 0:
			fileUnder(all, b.values, portKey(m.Protocol, m.Port), number)
		default: // every port, or ICMP
			fileUnder(all, b.whole, m.Protocol, number)
		}
	}
}

func fileUnder[K comparable](all *builder, lists map[K]uint32, key K, number int) {
	list := lists[key]
	all.file(&list, number)
	lists[key] = list
}

func (b *portBuilder) addRange(all *builder, m *PortMatch, number int) {
	ranges := b.ranges[m.Protocol]
	if ranges == nil {
		ranges = map[portRange]*[]int32{}
		b.ranges[m.Protocol] = ranges
	}
	r := portRange{m.Port, m.EndPort}
	numbers := ranges[r]
	if numbers == nil {
		if len(ranges) == mostRanges {
			fileUnder(all, b.whole, m.Protocol, number)
			return
		}
		numbers = new([]int32)
		ranges[r] = numbers
	}
	*numbers = append(*numbers, int32(number))
}

// cut makes the pieces of the ranges, before the lists are written.
func (b *portBuilder) cut(all *builder) {
	for protocol, ranges := range b.ranges {
		var keys []uint32
		for r := range ranges {
			keys = append(keys, portKey(protocol, r.first), portKey(protocol, r.last)+1)
		}
		slices.Sort(keys)
		for _, key := range slices.Compact(keys) {
			piece := border{key: key}
			for r, numbers := range ranges {
				if portKey(protocol, r.first) > key || key > portKey(protocol, r.last) {
					continue
				}
				for _, number := range *numbers {
					all.file(&piece.list, int(number))
				}
			}
			b.borders = append(b.borders, piece)
		}
	}
	slices.SortFunc(b.borders, func(x, y border) int { return cmp.Compare(x.key, y.key) })
}

func (b *portBuilder) freeze(n int, at []uint32) portColumn {
	c := b.portColumn
	if c.used = worthwhile(&c.any, n); !c.used {
		return portColumn{}
	}
	placeAll(c.values, at)
	placeAll(c.whole, at)
	placeAll(c.names, at)
	for i := range c.borders {
		c.borders[i].list = place(at, c.borders[i].list)
	}
	return c
}

func placeAll[K comparable](lists map[K]uint32, at []uint32) {
	for key, list := range lists {
		lists[key] = place(at, list)
	}
}
